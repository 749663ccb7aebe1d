"""RoPE scaling: the maths once, the live model held to it, and its spelling for each runtime."""
