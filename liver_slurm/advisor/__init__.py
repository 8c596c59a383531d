"""The advisor: what logged decisions say about taking reclaimable nodes, also for a partition without outcomes.

Everything here is a function of arrays. A *decision* is a row of a :class:`~liver_slurm.advisor.table.DecisionTable`:
covariates X that were known when it was made, an action A, and K outcomes at growing distances of which the last is the
long-term one. An outcome that was not seen hides all later ones (monotone missingness). The functional that all
estimators here aim at is the one of Yang, Guo, Han and Wu (arXiv 2504.19527) where outcomes are missing, and the one of
Liu, Yang, Tian, Guo and Wu (arXiv 2501.08067) where a second domain has covariates alone; one recursion
(:mod:`liver_slurm.advisor.stages`) and one table of contributions (:mod:`liver_slurm.advisor.contributions`) serve
both.
scikit-learn and scipy, of the extra ``advisor``, are imported inside functions only.
"""
