"""Asks this example for the tokens after a prompt, through the broker of RANKMQ_BROKER_URL.

The weights are random, so what comes is no language; the same prompt gives the same tokens, whichever way it is asked.
"""

import argparse
import os
import time

import numpy as np
from rankmq.engine.client import Client


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="What is the capital of France?")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--method", choices=["generate", "generate_by_trip", "generate_combined"], default="generate")
    options = parser.parse_args()
    prompt = np.frombuffer(options.prompt.encode(), np.uint8).astype(np.int32)
    instance = {"prompt": prompt, "new_tokens": np.int32(options.new_tokens)}
    with Client(os.environ["RANKMQ_BROKER_URL"], "gpt", options.method) as client:
        began = time.perf_counter()
        tokens = client.infer(instance)[0]["tokens"]
        seconds = time.perf_counter() - began
    print(*tokens)
    print(f"{tokens.size} tokens in {seconds:.2f} s: {1000 * seconds / tokens.size:.1f} ms each")


if __name__ == "__main__":
    main()
