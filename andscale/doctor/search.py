"""FAISS: its build, the libraries beside it, and a search on the GPUs against the same on the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

from andscale.doctor.children import answer_of
from andscale.doctor.finding import Finding, ok, problem, warning
from andscale.errors import UsageError
from andscale.indexing.faiss_health import FaissBuild, compare_with_gpus, faiss_build, libraries_twice
from andscale.spelling import make_env

_TIMEOUT_S = 120
_ONE_FAISS = "uninstall all of them, then install one: andscale[cpu], andscale[gpu] or andscale[cuvs]"


def check_faiss(torch_cuda: str | None, torch_gpus: int) -> Iterator[Finding]:
    """Look at FAISS beside a torch that is built for ``torch_cuda`` (None: the CPU) and sees so many GPUs."""
    try:
        build = faiss_build()
    except UsageError as error:
        yield problem("FAISS", str(error), f"pip install 'andscale[cpu]'{make_env(', or ')}")
        return
    yield judge_build(build, torch_cuda, torch_gpus)
    if not build.num_gpus:
        yield ok("FAISS on GPU", "not run: no GPU that FAISS sees, so there was nothing to compare with the CPU")
        return
    # in a process of its own: libraries that do not fit may end it
    answer = answer_of("andscale.doctor.search:search_child", [], _TIMEOUT_S)
    yield judge_search(answer.get("difference"), answer.get("libraries", []), answer.get("error", ""))


def judge_build(build: FaissBuild, torch_cuda: str | None, torch_gpus: int) -> Finding:
    """Which build it is, and whether it fits torch."""
    kind = f"GPU{', cuVS' if 'CUVS' in build.options else ''}" if build.has_gpu else "CPU"
    cuda = f", CUDA {build.cuda_major}" if build.cuda_major else ""
    text = f"{build.version} for {kind}{cuda} ({build.options})"
    if len(build.packages) > 1:
        return problem("FAISS", f"{text} from {' and '.join(build.packages)}, which overwrite each other", _ONE_FAISS)
    if torch_cuda and build.cuda_major and build.cuda_major != int(torch_cuda.split(".")[0]):
        fix = "install the FAISS of torch's CUDA: andscale[gpu] for 12, andscale[cuvs] for 13"
        return warning("FAISS", f"{text}, but torch is built for CUDA {torch_cuda}", fix)
    if torch_gpus and not build.has_gpu:
        return warning("FAISS", f"{text}: it leaves {torch_gpus} GPUs alone", "install andscale[gpu] or andscale[cuvs]")
    if torch_gpus != build.num_gpus and build.has_gpu:
        fix = "see whether the driver runs the CUDA that FAISS was built for"
        return problem("FAISS", f"{text} sees {build.num_gpus} GPUs, torch {torch_gpus}", fix)
    return ok("FAISS", text)


def judge_search(difference: str | None, libraries: list[str], error: str) -> Finding:
    """What came of the search on the GPUs: ``difference`` is None where it did not end."""
    fix = "do not use this FAISS: install the one of torch's CUDA, in an environment without other CUDA packages"
    if difference is None:
        return problem("FAISS on GPU", f"a search does not end well: {error}", fix)
    mixed = f"; two versions of one library are loaded: {', '.join(libraries)}" if libraries else ""
    if difference:
        return problem("FAISS on GPU", f"the GPU disagrees with the CPU: {difference}{mixed}", fix)
    if mixed:
        return warning("FAISS on GPU", f"it agrees with the CPU{mixed}", fix)
    return ok("FAISS on GPU", "a search on the GPU agrees with the CPU's")


def search_child() -> None:
    """Search on GPUs beside a torch that uses them, as the rebuild job does; prints what came of it."""
    import torch

    for number in range(torch.cuda.device_count()):
        torch.ones(64, 64, device=f"cuda:{number}").matmul(torch.ones(64, 64, device=f"cuda:{number}")).sum().item()
    found = compare_with_gpus()
    print(json.dumps({"difference": found, "libraries": libraries_twice(Path("/proc/self/maps").read_text())}))
