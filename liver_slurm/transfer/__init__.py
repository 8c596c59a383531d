"""The data plane: state moves from worker to worker in bounded memory and is proven to have arrived."""
