// Asks the pipeline of examples/matmul from Node.js, in JSON.
//
// npm install
// RANKMQ_BROKER_URL=amqp://user:password@host:5672/%2F node producer.js [SERVABLE METHOD]
"use strict";

const { randomUUID } = require("node:crypto");
const amqp = require("amqplib");

async function main(url, servable = "matmul", method = "predict", seconds = 60) {
  if (!url) throw new Error("RANKMQ_BROKER_URL names no broker");
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true }); // ours, gone with the connection
  const asked = randomUUID();
  const replied = new Promise((resolve, reject) => {
    const onMessage = (message) => message?.properties.correlationId === asked && resolve(message.content);
    channel.consume(queue, onMessage, { noAck: true }).catch(reject);
    channel.on("error", reject);
    setTimeout(reject, seconds * 1000, new Error(`no reply within ${seconds} s`)).unref();
  });
  // JavaScript writes 1.0 as 1, and a bare 1 is taken for a whole number: the dtype says what is meant.
  const ones = { dtype: "float32", data: Array.from({ length: 128 }, () => Array(96).fill(1)) };
  const request = { v: 1, servable, method, instances: [{ x: ones, y: ones }] };
  channel.publish("rankmq.requests", servable, Buffer.from(JSON.stringify(request)), {
    messageId: asked, correlationId: asked, replyTo: queue, contentType: "application/json", persistent: true,
  });
  const reply = JSON.parse(await replied);
  for (const error of [reply.error, ...reply.errors.map((failed) => failed.error)]) {
    if (error) throw new Error(`${error.code}: ${error.message}`);
  }
  for (const [name, { dtype, shape, data }] of Object.entries(reply.outputs[0])) {
    console.log(name, dtype, shape.join("x"), data.flat().slice(0, 4), "...");
  }
  await connection.close();
}

const [servable, method] = process.argv.slice(2);
main(process.env.RANKMQ_BROKER_URL, servable, method).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
