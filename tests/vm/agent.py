"""Inside the virtual machine: runs what the test process asks for, one request a line, one answer a line.

A request is JSON: `script`, `user`, `timeout` (seconds), `stdin` (base64); an answer: `status` (124: time ran out),
`stdout`, `stderr` (base64). Output goes by files, so that what a script leaves running holds nothing up.
"""

import base64
import json
import os
import signal
import subprocess
import tempfile

PORT = "/dev/virtio-ports/agent"


def answer(script: str, user: str, timeout: float, stdin: str) -> dict[str, object]:
    words = ["sh", "-c", f"set -eu\n{script}"]
    if user != "root":
        # A login: PAM opens a session with logind, as ssh or a terminal would.
        words = ["runuser", "--login", user, "--command", words[-1]]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(base64.b64decode(stdin))
        given.seek(0)
        process = subprocess.Popen(words, stdin=given, stdout=out, stderr=err, cwd="/root", start_new_session=True)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = 124
        out.seek(0), err.seek(0)
        texts = [base64.b64encode(file.read()).decode() for file in (out, err)]
    return {"status": status, "stdout": texts[0], "stderr": texts[1]}


def main() -> None:
    with open(PORT, "r+b", buffering=0) as port, open(port.fileno(), "rb", closefd=False) as requests:
        port.write(b'"ready"\n')
        for line in requests:
            reply = memoryview(json.dumps(answer(**json.loads(line))).encode() + b"\n")
            while reply:
                reply = reply[port.write(reply) :]


main()
