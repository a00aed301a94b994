"""Direct logit attribution: what each part writes toward a token, summing exactly to its logit.

A *direct* effect takes one path only: from what a component adds to the residual stream straight to
the logits, past all later layers. With the final norm's scale frozen it is linear, so the parts
sum to the logit. An audit says how far that is from removing the write with the norm recomputed,
and from ablating the component in the model.
"""
