"""The one UDP socket, its batches, and the interfaces that it lives on."""
