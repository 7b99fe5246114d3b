"""Run app.py of an export on a Ray that listens on loopback, until stdin ends: `ray_driver.py PORT TEMPORARY`."""

import sys

import ray
from ray import serve

port, temporary = sys.argv[1:]
sys.path.insert(0, ".")
for attempt in range(3):  # Ray waits 30 s for its own processes, which may be too short on a busy machine
    try:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=f"{temporary}/{attempt}",
            runtime_env={"env_vars": {"PYTHONPATH": "."}},
        )
        break
    except Exception:
        if attempt == 2:
            raise
        ray.shutdown()
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})

import app  # noqa: E402

serve.run(app.app)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
