"""Pictures of ranked lists, which live with what all methods draw."""

from lit_methods.functional.framing import (
    PLAIN as PLAIN,
    RIGHT as RIGHT,
    WRONG as WRONG,
    framed as framed,
    labelled as labelled,
    ranked_list as ranked_list,
)
