"""The arithmetic of MCN: pooled words, the consistency energy, boxes and masks with their losses, ASNLS, letterboxes.

Boxes are x1, y1, x2, y2 in pixels of the letterboxed input. float64 stays float64, all else is computed in float32.
Each idea has a file of its own; the names of all are here.
"""

from lit_methods.functional.letterbox import Letterbox, letterbox_boxes, letterbox_params
from lit_methods.mcn.energy import attention_pool, consistency_energy, consistency_energy_loss, spatial_attention
from lit_methods.mcn.referring_boxes import build_rec_targets, decode_boxes, rec_loss, round_boxes, select_top_box
from lit_methods.mcn.referring_masks import ASNLS_MODES, asnls, postprocess_masks, res_loss

__all__ = [
    "ASNLS_MODES",
    "Letterbox",
    "asnls",
    "attention_pool",
    "build_rec_targets",
    "consistency_energy",
    "consistency_energy_loss",
    "decode_boxes",
    "letterbox_boxes",
    "letterbox_params",
    "postprocess_masks",
    "rec_loss",
    "res_loss",
    "round_boxes",
    "select_top_box",
    "spatial_attention",
]
