"""Lets `import torchvision` work when its compiled operators cannot load, in every process of the environment.

On a CPU-only machine pip installs the CUDA build of torchvision beside the CPU build of torch. Its `_C.so` then does
not load, which torchvision itself tolerates, except that `torchvision/_meta_registrations.py` registers shapes for
`nms` and `qnms` and raises "operator torchvision::nms does not exist". Declaring the two operators just before that
module runs is all it needs; every pure Python part (resize, transforms) then works.

The repair must reach processes that nobody of ours starts (vLLM inspects models in a subprocess, Ray starts workers),
so a `.pth` file imports this module when Python starts. That is why it is no part of `museg_ray`: importing the
package at every start would pin the installed copy, and code that Ray ships in a job's working directory would
silently lose against it. Start-up imports nothing but `sys`, torch least of all.
"""

import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionOperators:
    """Import hook that finds no module; it only acts in time.

    When torchvision imports `_meta_registrations` it has already tried to load its operators, so what is missing
    now stays missing, and where they loaded (a CUDA machine) there is nothing to do.
    """

    library: object = None
    """Keeps the declarations: torch withdraws them when this object dies."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision._meta_registrations":
            self.declare_missing_operators()

    def declare_missing_operators(self) -> None:
        import torch

        if not hasattr(torch.ops.torchvision, "nms"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in OPERATORS:
                library.define(schema)
            self.library = library


# At import, since Python runs .pth files of a virtual environment twice and imports a module once.
sys.meta_path.insert(0, TorchvisionOperators())
