"""Has a conversation with this example, through the broker of RANKMQ_BROKER_URL; each answer is shown as it comes."""

import argparse
import json
import os

from rankmq.engine.client import Client


def ask(client, messages, options):
    """The answer to a conversation."""
    shown = ""
    with client.stream({"prompt": json.dumps(messages), "options": json.dumps(options)}) as stream:
        for part in stream:  # each has all of the text so far
            text = str(part.outputs["text"])
            print(text.removeprefix(shown), end="", flush=True)
            shown = text
        text = str(stream.result()[0]["text"])
    print(text.removeprefix(shown))
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help="one question; without it, as many as you like")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    question, messages = given.pop("question"), []
    with Client(os.environ["RANKMQ_BROKER_URL"], "smollm2", "chat", timeout=300) as client:
        while words := question or input("> "):
            messages.append({"role": "user", "content": words})
            messages.append({"role": "assistant", "content": ask(client, messages, given)})
            if question:
                return


if __name__ == "__main__":
    main()
