"""Keys, node ids, and everything that is signed or sealed with them."""
