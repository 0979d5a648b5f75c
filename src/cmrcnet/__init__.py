"""CMRCNet: spatial gene expression from H&E, with the measured tissue behind every prediction.

One function a step; `docs/concepts/journey.md` draws the way from a slide to a prediction table. Names are resolved
when they are first used, so that importing the package is quick, quiet and offline.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "tissue.scale": ["PatchScale"],
    "tissue.spots": ["Spots"],
    "tissue.slide": ["Slide", "ArraySlide"],
    "tissue.slide_files": ["open_slide"],
    "tissue.section": ["Section", "Cohort"],
    "tissue.mask": ["TissueMask", "find_tissue"],
    "tissue.patches": ["crop_patches", "patch_grid"],
    "recipe": ["Recipe"],
    "expression.normalize": ["normalize"],
    "expression.panel": ["GenePanel", "choose_panel"],
    "expression.table": ["prediction_table", "check_prediction_table"],
    "readers.registry": ["read_section", "reader_formats"],
    "readers.cohort": ["read_cohort"],
    "readers.spot_table": ["read_spots"],
    "readers.inspection": ["inspect"],
    "quality.cohort_check": ["check_cohort"],
    "quality.finding": ["Finding"],
    "datasets.synthetic": ["synthetic_cohort"],
    "model.encoder_registry": ["create_image_encoder", "image_encoders"],
    "model.trained_model": ["TrainedModel"],
    "model.student": ["Student"],
    "encoding.encode": ["encode_patches"],
    "encoding.token_cache": ["TokenCache"],
    "training.fit": ["fit"],
    "prediction.bank": ["ReferenceBank", "build_bank"],
    "prediction.predict": ["predict"],
    "prediction.student_predict": ["predict_by_student"],
    "search.exact": ["ExactSearch"],
    "search.neighbours": ["Neighbours"],
    "evaluation.protocol": ["evaluate"],
    "evaluation.report": ["write_report"],
    "distillation.distil": ["distil"],
    "distillation.student_look": ["StudentLook"],
    "downstream.receipt": ["receipt", "Receipt"],
    "downstream.receipt_sheet": ["receipt_sheet"],
    "errors": ["CmrcnetError"],
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("cmrcnet")
    if name not in _WHERE:
        raise AttributeError(f"module 'cmrcnet' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cmrcnet.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
