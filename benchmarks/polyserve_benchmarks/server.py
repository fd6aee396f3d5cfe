"""A server of one model that is started for a measurement, on free ports, and ended after it."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from polyserve.errors import PolyServeError

POLYSERVE = (sys.executable, "-c", "import sys; from polyserve.cli.main import main; sys.exit(main())")


@contextmanager
def started(model: str, *flags: str, polyserve: Sequence[str] = POLYSERVE) -> Iterator[str]:
    """The address of `polyserve serve MODEL` once it is ready. Raises PolyServeError if it does not start.

    polyserve: the command in another form.
    """
    command = [*polyserve, "serve", model, "--port", "0", "--grpc-port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"at (http://\S+) \(HTTP\)", line)
            if address is None:
                raise PolyServeError(f"the server did not start: {line.strip() or 'see above'}")
            yield address[1]
        finally:
            server.terminate()
