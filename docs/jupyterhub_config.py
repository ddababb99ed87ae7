"""JupyterHub for a class on one machine: each learner logs in with their own account and has a minirt of their own.

As root, in a clone with a virtual environment that everybody may read (so not below /root):

    npm install --global configurable-http-proxy
    .venv/bin/pip install jupyterhub
    .venv/bin/jupyterhub -f docs/jupyterhub_config.py

A learner's server lays the course into their home folder, as themselves, and opens its first page. Their images and
containers lie in their home too: nobody sees another's. Images that all use lie in one place if root shares a store
(README, "One copy for a class"). Passwords go over this line: put a proxy with https before it,
or set `c.JupyterHub.ssl_key` and `ssl_cert`.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821 (JupyterHub gives it)

c.JupyterHub.bind_url = os.environ.get("MINIRT_CLASS_URL", "http://127.0.0.1:8000")
c.JupyterHub.hub_bind_url = os.environ.get("MINIRT_CLASS_HUB_URL", "http://127.0.0.1:8081")

# Whoever has an account on this machine and knows its password; `c.Authenticator.allowed_users` names fewer.
c.JupyterHub.authenticator_class = "pam"
c.Authenticator.allow_all = True
c.PAMAuthenticator.open_sessions = False  # no login session of the machine is needed

# The learner's own process: the course first, then the server; -P, for a folder of theirs must not pass for a package.
# What they save keeps no dead buttons (minirt/notebook/normal.py).
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = [
    "sh",
    "-c",
    '"$0" -P -m minirt lab --lay && exec "$0" -P -m jupyterhub.singleuser "$@"',
    sys.executable,
]
c.Spawner.args = ["--FileContentsManager.pre_save_hook=minirt.notebook.normal.pre_save"]
c.Spawner.notebook_dir = "~"
settings = Path(__file__).resolve().parent.parent / "minirt" / "notebook" / "static" / "jupyter"
c.Spawner.environment = {"JUPYTER_CONFIG_PATH": str(settings)}  # pages open as they are read; nobody is asked of news
c.Spawner.default_url = "/lab/tree/minirt-course/index.ipynb"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # seconds: thirty learners who begin at once
