"""Training: one loop for all methods, plain or under torchrun, resumable bit by bit.

Plain torch and torch.distributed, without accelerate: `Method.loss` is no `forward`, so a wrapped module would have to
be unwrapped for everything but the gradients; what is left of accelerate (autocast, one all-reduce, one gather) is
four lines of torch, exact for unequal shares of a batch, and needs no import. diffusers' EMA and schedules are not
used either: they cost seconds of import and carry state, where a closed form of the step needs none.
"""
