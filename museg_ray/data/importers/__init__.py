"""Readers of annotation files, one a family of formats. They parse; whether a row is sound is for the rules."""

from museg_ray.data.importers.activitynet import read_activitynet
from museg_ray.data.importers.charades_sta import read_charades_sta
from museg_ray.data.importers.et import read_et_bench, read_et_instruct
from museg_ray.data.importers.generic import read_generic
from museg_ray.data.importers.museg import read_museg, read_museg_eval
from museg_ray.data.importers.qvhighlights import read_qvhighlights
from museg_ray.data.importers.rows import Importer
from museg_ray.data.importers.tacos import read_tacos

IMPORTERS: dict[str, Importer] = {
    "museg": read_museg,
    "charades_sta": read_charades_sta,
    "activitynet": read_activitynet,
    "tacos": read_tacos,
    "qvhighlights": read_qvhighlights,
    "et_instruct": read_et_instruct,
    "et_bench": read_et_bench,
    "museg_eval": read_museg_eval,  # after et_bench, whose rows it reads too
    "generic": read_generic,
}
"""By the name that `museg data import` takes."""
