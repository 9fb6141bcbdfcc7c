"""One role of an engine as a process of its own: role.py orchestrator|agents SPECIFICATION (JSON).

The specification has `directory` (of servables), `servables` (name and version of each) and, for agents, `ranks`: those
to start, None for all. Everything else is in the environment, as RANKMQ_*. An error ends it with the error's exit code.
"""

import ctypes
import json
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # the tests themselves may be killed
    role, given = sys.argv[1], json.loads(sys.argv[2])
    from rankmq.engine import logs
    from rankmq.engine.loader import load_servable
    from rankmq.engine.settings import load_settings
    from rankmq.schemas.errors import OperatorError

    try:
        settings = load_settings()
        logs.configure("launcher" if role == "agents" else role, level=settings.log_level)
        directory = Path(given["directory"])
        servables = [load_servable(directory, name, version) for name, version in given["servables"]]
        if role == "orchestrator":
            from rankmq.engine.catalog import Catalog
            from rankmq.engine.orchestrator import Orchestrator

            Orchestrator(Catalog(servables), settings).run()
        else:
            from rankmq.schemas.messages import GroupId
            from rankmq.workers.launcher import Launcher

            files = {
                GroupId(servable=it.name, version=it.version): {
                    rank: of_rank
                    for rank, of_rank in enumerate(it.model_files)
                    if given["ranks"] is None or rank in given["ranks"]
                }
                for it in servables
                if it.model_files
            }
            Launcher(files, settings).run()
    except OperatorError as error:
        sys.stderr.write(f"rankmq: {error.message}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
