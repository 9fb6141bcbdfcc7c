// Asks the pipeline of examples/matmul from Node.js, in JSON.
//
// npm install
// RANKMQ_BROKER_URL=amqp://user:password@host:5672/%2F node producer.js [SERVABLE METHOD [LANE [SECONDS]]]
//
// It asks for parts of the answer, too: matmul has none, but other servables may.
"use strict";

const { randomUUID } = require("node:crypto");
const amqp = require("amqplib");

const GRACE = 5000; // milliseconds after the deadline in which its error may still come

class Lost extends Error {}

async function main(url, servable = "matmul", method = "predict", lane = "normal", seconds = 60) {
  if (!url) throw new Error("RANKMQ_BROKER_URL names no broker");
  // JavaScript writes 1.0 as 1, and a bare 1 is taken for a whole number: the dtype says what is meant.
  const ones = { dtype: "float32", data: Array.from({ length: 128 }, () => Array(96).fill(1)) };
  const request = { v: 1, servable, method, instances: [{ x: ones, y: ones }], stream: true };
  const question = {
    messageId: randomUUID(), // the request: published again under it, it is not computed again
    correlationId: randomUUID(), // our question: comes back in the reply
    contentType: "application/json",
    persistent: true,
    headers: { "rankmq-deadline": Math.round(Date.now() + 1000 * seconds) },
  };
  const body = Buffer.from(JSON.stringify(request));
  let reply;
  for (let triesLeft = 2; !reply; triesLeft--) {
    reply = await ask(url, `${servable}.${lane}`, body, question).catch((error) => {
      if (!triesLeft || !(error instanceof Lost)) throw error; // else: what became of it? the same once more
    });
  }
  for (const error of [reply.error, ...reply.errors.map((failed) => failed.error)]) {
    if (error) throw new Error(`${error.code}: ${error.message}`);
  }
  for (const [name, { dtype, shape, data }] of Object.entries(reply.outputs[0])) {
    console.log(name, dtype, shape.join("x"), data.flat().slice(0, 4), "...");
  }
}

async function ask(url, routingKey, body, question) {
  const connection = await amqp.connect(url);
  connection.on("error", () => {}); // "close" follows
  let timer;
  try {
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue("", { exclusive: true }); // ours, gone with the connection
    return await new Promise((resolve, reject) => {
      connection.on("close", () => reject(new Lost("broker: the connection was lost")));
      channel.on("error", reject);
      const onMessage = (message) => {
        if (message?.properties.correlationId !== question.correlationId) return;
        const found = JSON.parse(message.content);
        if (message.properties.type === "part") console.log("so far:", JSON.stringify(found.outputs));
        else resolve(found);
      };
      channel.consume(queue, onMessage, { noAck: true }).catch(reject);
      const left = question.headers["rankmq-deadline"] - Date.now();
      const expiration = Math.max(1, Math.round(left)); // past it the broker drops it, too
      channel.publish("rankmq.requests", routingKey, body, { ...question, replyTo: queue, expiration }, (refused) =>
        refused && reject(new Error("the broker refused the request: its queue is full")));
      const giveUp = (why) => // no work for nobody
        channel.publish("rankmq.cancel", "", Buffer.alloc(0), { correlationId: question.messageId }, () =>
          reject(new Error(why)));
      timer = setTimeout(giveUp, left + GRACE, "no reply in time");
      process.once("SIGINT", () => giveUp("interrupted"));
    });
  } finally {
    clearTimeout(timer);
    process.removeAllListeners("SIGINT");
    await connection.close().catch(() => {});
  }
}

const [servable, method, lane, seconds] = process.argv.slice(2);
main(process.env.RANKMQ_BROKER_URL, servable, method, lane, seconds).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
