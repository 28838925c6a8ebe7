"""Dies while it prepares a data set, at every step in turn: python prepare_crasher.py SOURCE_FOLDER WORK_FOLDER.

A crash is ``os._exit`` in a forked child, before or after the n-th rename (every publication is one) or before the
n-th member of a tar. After each crash a second child goes on undisturbed. Prints a JSON list of
{"crash", "died", "finished_before", "kept", "digest", "left"}; ``digest`` covers names and bytes of all files.
"""

import hashlib
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from andscale.data import prepare as prepare_module
from andscale.data import shard_writer
from andscale.data.prepare import PrepareOptions, prepare

OPTIONS = PrepareOptions(samples_per_shard=3, num_workers=1, skip_bad=True)


def crash_at(owner, name, number, after):
    """Make the ``number``-th call of ``owner.name`` the last thing that this process does."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and not after:
            os._exit(9)
        result = original(*args, **kwargs)
        if calls[0] == number:
            os._exit(9)
        return result

    setattr(owner, name, wrapped)


def in_child(function):
    """The exit code of ``function`` in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(out):
    content = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        content.update(str(path.relative_to(out)).encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return content.hexdigest()


def main():
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    # everything that is imported on the way is loaded here, once, and not in every child
    prepare("image-folder", source, work / "undisturbed", OPTIONS)
    crashes = [(Path, "rename", n, after) for n in range(1, 16) for after in (False, True)]
    crashes += [(shard_writer, "_add_member", n, False) for n in (1, 4, 13)]
    crashes += [(prepare_module, "_write_dataset", 1, after) for after in (False, True)]
    report = []
    for number, (owner, name, at, after) in enumerate(crashes):
        out = work / f"crash-{number}"

        def crashing(owner=owner, name=name, at=at, after=after, out=out):
            crash_at(owner, name, at, after)
            prepare("image-folder", source, out, OPTIONS)

        died = in_child(crashing) == 9
        finished = {
            p.name: p.stat().st_ino for p in out.glob("*.tar") if (out / ".parts" / f"{p.stem}.parquet").exists()
        }
        code = in_child(lambda out=out: prepare("image-folder", source, out, OPTIONS))
        report.append(
            {
                "crash": f"{name} {at} {'after' if after else 'before'}",
                "died": died,
                "finished_before": len(finished),
                "kept": sum((out / shard).stat().st_ino == inode for shard, inode in finished.items()),
                "code": code,
                "digest": digest(out),
            }
        )
        shutil.rmtree(out)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
