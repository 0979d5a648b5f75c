"""Quality control of a cohort: detectors of duplicates, wrong patients, odd stains and scales, misplaced spots."""
