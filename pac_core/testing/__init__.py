from pac_core.testing.store import StoreSuite as StoreSuite
