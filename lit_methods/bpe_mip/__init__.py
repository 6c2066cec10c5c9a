"""BPE and MIP: which cheap training ranks networks as a full one does, and searchers that use it (arXiv 2005.09917).

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from lit_methods.bpe_mip.architecture_gradient import architecture_gradient as architecture_gradient
    from lit_methods.bpe_mip.cost import gpu_hours as gpu_hours
    from lit_methods.bpe_mip.functional import (
        cosine_lr as cosine_lr,
        drop_path_at as drop_path_at,
        eliminate as eliminate,
        expected_pick as expected_pick,
        fanova_importance as fanova_importance,
        fanova_tree as fanova_tree,
        spearman as spearman,
        top_mean as top_mean,
    )
    from lit_methods.bpe_mip.mip import MIP as MIP
    from lit_methods.bpe_mip.model import (
        DartsCellNetwork as DartsCellNetwork,
        DartsSupernet as DartsSupernet,
        build_op as build_op,
    )
    from lit_methods.bpe_mip.search_space import (
        BPE1 as BPE1,
        BPE2 as BPE2,
        DARTS_DEFAULT as DARTS_DEFAULT,
        FULL as FULL,
        PRESETS as PRESETS,
        PRIMITIVES as PRIMITIVES,
        Genotype as Genotype,
        Recipe as Recipe,
        genotype_from_sample28 as genotype_from_sample28,
        named_recipe as named_recipe,
        parse_alpha as parse_alpha,
        random_genotype as random_genotype,
        read_genotypes as read_genotypes,
        sample28_from_genotype as sample28_from_genotype,
        slim_by_probability as slim_by_probability,
        slim_masks as slim_masks,
        slim_with_masks as slim_with_masks,
        tied_lr as tied_lr,
    )
    from lit_methods.bpe_mip.searchers import (
        RandomSearch as RandomSearch,
        RegularizedEvolution as RegularizedEvolution,
        ReinforceSearch as ReinforceSearch,
        Searcher as Searcher,
    )
    from lit_methods.functional.cutout import cutout as cutout

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
