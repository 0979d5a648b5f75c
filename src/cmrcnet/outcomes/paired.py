"""Expression predicted by models that are trained in the fold, where the patients have paired sections.

The cases that a fold tests are predicted by a model of all its training patients, so no model sees a test patient. Its
training cases are predicted by models of the other training patients, part by part, so that the outcome model meets
predictions of unseen patients in training as in testing. Sections of patients without an outcome are trained on in
every fold.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmrcnet.config import Config
from cmrcnet.errors import BadInput, TooFew
from cmrcnet.evaluation import Frame
from cmrcnet.evaluation.methods.frozen_features import FeatureKind, PooledFeatures
from cmrcnet.evaluation.methods.trained_cmrcnet import permuted
from cmrcnet.evaluation.protocol.fold_runner import remembered
from cmrcnet.evaluation.protocol.folds import refuse_seen
from cmrcnet.outcomes.cohort import EXPRESSION, Block, Columns, OutcomeCohort, refuse_expression
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

PARTS = 3
"""Parts of a fold's training patients, each predicted by a model of the others."""


@dataclass(frozen=True, eq=False)
class PairedExpression:
    """Mean predicted expression of every case, by models that know training patients only.

    Parameters
    ----------
    sections : Cohort
        Slides with measured expression.
    of_case : tuple of (tuple of str)
        Sections of each case.
    patients : tuple of str
        Patient of each case.
    config : Config
        How the expression model is trained.
    cache : TokenCache or None
        Where image features are kept.
    shuffled : bool
        Train on pairs that are permuted within each section: the null of the expression model.
    """

    sections: Cohort
    of_case: tuple[tuple[str, ...], ...]
    patients: tuple[str, ...]
    config: Config
    cache: TokenCache | None = None
    shuffled: bool = False

    def features(self, train: np.ndarray) -> Frame:
        """Train on the training patients, and predict every case: (cases, genes that all models predict)."""
        import pandas as pd

        inside = list(dict.fromkeys(self.patients[case] for case in train))
        if len(inside) < 2:
            raise TooFew("training patients of a fold", len(inside), 2, "a training case is predicted without itself")
        order = np.random.default_rng(self.config.train.seed).permutation(len(inside))
        left_out = [{inside[i] for i in part} for part in np.array_split(order, min(PARTS, len(inside)))]
        left_out.append(set(self.patients) - set(inside))
        known = set(inside)
        found = [self._predicted(known - unseen, unseen) for unseen in left_out if unseen]
        table = pd.concat(found, join="inner").sort_index().dropna(axis=1)
        if not table.shape[1]:
            raise BadInput("the paired sections", "genes in common", "no gene is predicted for every patient")
        return table

    def _predicted(self, known: set[str], unseen: set[str]) -> Frame:
        """Mean expression of the cases of unseen patients, by a model of the known ones."""
        import pandas as pd

        from cmrcnet.inference.predict import predict
        from cmrcnet.retrieval.bank import build_bank
        from cmrcnet.training.fit import fit

        outside = set(self.patients) - known
        training = self.sections.only(s for s in self.sections.sections if self.sections.patient_of(s) not in outside)
        if self.shuffled:
            log.info("shuffled, without %d patients: this training is expected to stay at chance", len(outside))
            training = permuted(training, self.config.train.seed)
        model = fit(training, self.config, cache=self.cache, calibrate=False)
        bank = build_bank(model, training, cache=self.cache)
        for name, seen in (("model", model.provenance.patients), ("bank", bank.patients)):
            refuse_seen(f"The {name} of a fold", seen_sections=(), seen_patients=seen, sections=(), patients=unseen)
        rows = {}
        for case, names in enumerate(self.of_case):
            if self.patients[case] not in unseen:
                continue
            tables = [
                predict(model, section.slide, bank=bank, spots=section.spots, cache=self.cache)
                for section in map(self.sections.read, names)
            ]
            means = [pd.Series(np.asarray(t.X).mean(axis=0, dtype=np.float64), t.var_names) for t in tables]
            rows[case] = pd.concat(means, axis=1).mean(axis=1, skipna=False)
        return pd.DataFrame.from_dict(rows, orient="index")


def with_paired(
    cohort: OutcomeCohort, sections: Cohort, config: Config, cache: TokenCache | None = None
) -> OutcomeCohort:
    """Add blocks of paired sections to a cohort: expression and shuffled, trained in each fold; colour and imagenet.

    Parameters
    ----------
    cohort : OutcomeCohort
        Every case has a section or more: those of its patient, or those whose column `case` names it.
    sections : Cohort
        Paired sections; those of patients that the outcome cohort does not name are training sections in every fold.
    config : Config
        How the expression model is trained.
    cache : TokenCache, optional
        Where image features are kept.

    Raises
    ------
    BadInput
        A case without a section.
    """
    refuse_expression(cohort)
    sections = remembered(sections)
    case_of = {entry.section: str(entry.metadata.get("case") or entry.patient) for entry in sections.entries}
    patients, of_case = dict(zip(cohort.cases, cohort.patients, strict=True)), []
    for case in cohort.cases:
        of_case.append(tuple(name for name in sections.sections if case_of[name] == case))
        if not of_case[-1]:
            why = f"{case} has no section in {sections.name}; take it out of the table of patients"
            raise BadInput("the paired sections", "sections of the patients", why)
        for name in of_case[-1]:
            if sections.patient_of(name) != patients[case]:
                why = (
                    f"section {name} is of patient {sections.patient_of(name)}, and its case {case} of {patients[case]}"
                )
                raise BadInput("the paired sections", "sections of the patients", why)
    paired = PairedExpression(sections, tuple(of_case), cohort.patients, config, cache)
    frozen = PooledFeatures(Config.load("default"), cache)
    blocks: dict[str, Block] = {**cohort.blocks, EXPRESSION: paired, "shuffled": replace(paired, shuffled=True)}
    blocks["colour"] = Columns(_of_pictures(frozen, sections, of_case, "colour"))
    blocks["imagenet"] = Columns(_of_pictures(frozen, sections, of_case, "last"))
    facts = {**cohort.facts, "expression model": f"trained in the fold on {sections.name}", "config": config.to_dict()}
    return replace(cohort, blocks=blocks, facts=facts)


def _of_pictures(
    frozen: PooledFeatures, sections: Cohort, of_case: Sequence[Sequence[str]], kind: FeatureKind
) -> Frame:
    """Mean features of each case's spots."""
    import pandas as pd

    rows = []
    for names in of_case:
        read = map(sections.read, names)
        rows.append(np.mean([frozen.of(s.slide, s.spots, kind).mean(axis=0, dtype=np.float64) for s in read], axis=0))
    return pd.DataFrame(np.stack(rows)).add_prefix(f"{kind} ")
