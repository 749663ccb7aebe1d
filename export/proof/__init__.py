"""What a variant is: loaded by strangers that have none of our code, and measured against the merged model."""
