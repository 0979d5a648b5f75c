"""CMRCNet: spatial gene expression from H&E, with the measured tissue behind every prediction.

One function a step; `docs/concepts/journey.md` draws the way from a slide to a prediction table. Names are resolved
when they are first used, so that importing the package is quick, quiet and offline.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "slides.slide": ["Slide", "ArraySlide", "PatchScale", "open_slide"],
    "slides.section": ["Section", "Cohort", "Spots"],
    "slides.tissue_mask": ["TissueMask", "find_tissue"],
    "slides.patches": ["crop_patches"],
    "slides.query_grid": ["patch_grid"],
    "config": ["Config"],
    "genes.normalise": ["normalize"],
    "genes.gene_sets": ["GenePanel", "choose_panel"],
    "genes.table": ["prediction_table", "check_prediction_table"],
    "readers.registry": ["read_section", "reader_formats"],
    "readers.cohort": ["read_cohort"],
    "readers.annotations": ["read_spots"],
    "readers.inspection": ["inspect"],
    "qc.cohort_check": ["check_cohort"],
    "qc.section_summary": ["Finding"],
    "datasets.synthetic": ["synthetic_cohort"],
    "models.encoders": ["create_image_encoder", "image_encoders"],
    "models.trained_model": ["TrainedModel"],
    "models.student": ["Student"],
    "features.extract": ["FeatureSpec", "extract"],
    "storage.cache": ["TokenCache"],
    "training.fit": ["fit"],
    "retrieval.bank": ["ReferenceBank", "build_bank"],
    "inference.predict": ["predict"],
    "search.exact": ["ExactSearch", "Neighbours"],
    "evaluation.protocol.evaluate": ["evaluate"],
    "evaluation.report.evaluation_report": ["write_report"],
    "distill.distil": ["distil", "StudentConfig"],
    "analysis.attribution": ["attribution", "Attribution"],
    "analysis.attribution_sheet": ["attribution_sheet"],
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
