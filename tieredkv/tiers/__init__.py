"""Where chunks live: slots of the warm tier inside Vineyard's arena."""
