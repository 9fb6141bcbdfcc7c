"""The eight agents of this example, on this machine. The broker is the one of RANKMQ_BROKER_URL, as for every part."""

from rankmq.workers import distributed


def start_agents():
    """Start all the agents in current machine"""
    model_files = []
    for i in range(8):
        model_files.append([f"model/device{i}/matmul_0.mindir", f"model/device{i}/matmul_1.mindir"])
    distributed.startup_agents(model_files=model_files)


if __name__ == "__main__":
    start_agents()
