"""The paper's tables and figures beside predictions of our cost model."""
