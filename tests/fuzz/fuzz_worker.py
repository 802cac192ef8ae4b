"""Reads damaged files and says what came of it, one JSON line a trial; started by fuzz_campaign.py.

A process of its own, because a reader may crash: the line that is missing then is the crash.
"""

import faulthandler
import json
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path

from fuzz_formats import FORMATS, digest

from dcase.errors import DcaseError

SECONDS = 10
MEMORY = 6 * 2**30


def _late(*_):
    raise TimeoutError(f"not done after {SECONDS} s")


def outcome(read, path, wanted):
    """``(what happened, detail)`` of reading a damaged file."""
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where Python is not asked
    try:
        found = digest(read(path))
    except DcaseError as error:
        line = str(error)
        clear = "\n" not in line and 0 < len(line) < 700
        return ("refused", line) if clear else ("unclear", line[:2000])
    except Exception:  # what this is here to find
        return "traceback", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return ("same", "") if found == wanted else ("changed", "")


def main(folder, jobs):
    """``jobs``: ``{format: [first seed, behind the last]}``."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _late)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, most))
    for name, (first, last) in jobs.items():
        kind = FORMATS[name]
        place = Path(folder) / name.replace(" ", "-")
        place.mkdir(exist_ok=True, parents=True)
        path = place / kind.file
        if not (place / "whole").exists():
            kind.make(path)
            path.rename(place / "whole")
        content = (place / "whole").read_bytes()
        path.write_bytes(content)
        wanted = digest(kind.read(path))
        for seed in range(first, last):
            path.write_bytes(kind.mutate(content, seed))
            print(json.dumps({"start": [name, seed]}), flush=True)
            result, detail = outcome(kind.read, path, wanted)
            print(json.dumps({"end": [name, seed, result, detail]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
