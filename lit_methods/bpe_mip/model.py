"""The networks of BPE: operations, the stand-alone network of a genotype, DARTS' supernet."""

from lit_methods.bpe_mip.cell_network import DartsCellNetwork as DartsCellNetwork
from lit_methods.bpe_mip.cells import build_op as build_op
from lit_methods.bpe_mip.supernet import DartsSupernet as DartsSupernet
