"""What goes where on the hub, and sending it there."""
