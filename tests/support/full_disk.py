"""Searches whose disk is full at one moment after another: `python full_disk.py WORLD DISK STEPS`.

DISK is a small file system of our own, which holds the study. Each search of the tiny world finds a
little more room than the one before, meets the end of it at another write, and the last finds
enough. What each said and its exit code come as JSON on stdout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.ray_faults import environment, search_command
from tuner.search import open_study

TRIALS = 3
_PAGE = 4096
# A whole study of the tiny world takes some sixty pages.
_MOST_PAGES = 48


def main() -> None:
    """Run the searches."""
    world, disk, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    studies, filler = disk / "studies", disk / "filler"
    command = search_command(world, studies, TRIALS, "--no-track")
    runs = []
    for step in range(steps):
        left = _leave(filler, 1 + step * _MOST_PAGES // steps)
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        runs.append({"pages": left, "code": done.returncode, "said": done.stdout + done.stderr})
    filler.unlink()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    runs.append({"pages": None, "code": done.returncode, "said": done.stdout + done.stderr})
    trials = [[entry.number, entry.state.value] for entry in open_study(studies / "tiny").trials]
    drafts = [str(path) for path in studies.rglob(".*") if path.name.endswith(".draft")]
    sys.stdout.write(json.dumps({"runs": runs, "trials": trials, "drafts": drafts}))


def _leave(filler: Path, pages: int) -> int:
    """Fill the disk up to so many pages; return how many there are now."""
    filler.write_bytes(b"")
    free = os.statvfs(filler.parent).f_bavail
    filler.write_bytes(b"\0" * max(0, free - pages) * _PAGE)
    return int(os.statvfs(filler.parent).f_bavail)


if __name__ == "__main__":
    main()
