"""Prints, one a line for pip, what the packages of requirements.txt depend on.

Left out are packages of several hundred MB that nothing here imports: triton (torch.compile on GPUs) and the bindings of CUDA for
Python. The CUDA libraries stay: torch's wheel of the package index is linked against them, on machines without a GPU too.
"""

import importlib.metadata
import re
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"triton", "cuda-bindings"}


def main() -> None:
    lines = (Path(__file__).parent / "requirements.txt").read_text().splitlines()
    installed = {re.match(r"[\w-]+", line).group() for line in lines if line and not line.startswith("#")}
    needed = set()
    for package in installed:
        for line in importlib.metadata.requires(package) or []:
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and requirement.name.lower() not in installed | LEFT_OUT:
                requirement.marker = None
                needed.add(str(requirement))
    print("\n".join(sorted(needed)))


if __name__ == "__main__":
    main()
