# coordinator/: the store's contract, kept in Redis and in memory, the collector, and the server.
kn_unit_test(NAME store.contract SOURCES store_contract.c store_memory.c store_redis_server.c LIBS kn_store kn_base)
kn_unit_test(NAME store.redis SOURCES store_redis.c store_redis_server.c LIBS kn_store kn_base)
kn_unit_test(NAME store.collect SOURCES store_collect.c LIBS kn_collect kn_base)
kn_unit_test(NAME promise.trash SOURCES promise_trash.c LIBS kn_collect kn_base)
if(TARGET kn_server)
  kn_unit_test(NAME coordinator.history SOURCES coordinator_history.c LIBS kn_server)
  kn_unit_test(NAME coordinator.server SOURCES coordinator_server.c store_memory.c LIBS kn_server)
endif()
