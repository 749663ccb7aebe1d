"""GGUF through llama.cpp's own converter and quantizer, with the rope written where llama.cpp reads it."""
