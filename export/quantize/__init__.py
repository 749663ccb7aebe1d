"""A merged model becomes its variants: what is made of it, with which settings, in which environment."""
