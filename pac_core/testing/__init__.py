from pac_core.testing.adapter import AdapterSuite as AdapterSuite
from pac_core.testing.backbone import BackboneSuite as BackboneSuite
from pac_core.testing.scheduler import SchedulerSuite as SchedulerSuite
from pac_core.testing.store import StoreSuite as StoreSuite
from pac_core.testing.transport import TransportSuite as TransportSuite
