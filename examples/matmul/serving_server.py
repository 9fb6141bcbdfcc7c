"""The orchestrator of this example. The broker is the one of RANKMQ_BROKER_URL, as for every part."""

import os
import sys

from rankmq.engine import distributed


def start():
    servable_dir = os.path.dirname(os.path.realpath(sys.argv[0]))
    distributed.start_servable(servable_dir, "matmul", rank_table_json_file="rank_table_8pcs.json", version_number=1)


if __name__ == "__main__":
    start()
