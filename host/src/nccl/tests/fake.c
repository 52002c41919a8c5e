/* A library with NCCL's functions that moves nothing, for tests of the binding. What it does otherwise than it should, macros say:
 * VERSION      what it says of itself
 * NO_PEERS     it lacks ncclGetPeerDevicePointer
 * NO_WINDOWS   windows are null, with success
 * FAR          the rank that is not reached
 * IN_PROGRESS  so many times a registration is not over
 * FAILS        the result of registering
 * HANGS        milliseconds that making a communicator and registering take
 * REFUSED      of a communicator of so many ranks the last one is refused, and of others none
 * DIED         a communicator of so many ranks says that one is gone, others do not
 */
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#ifndef FAR
#define FAR -1
#endif
#ifndef IN_PROGRESS
#define IN_PROGRESS 0
#endif
#ifndef FAILS
#define FAILS 0
#endif
#ifndef HANGS
#define HANGS 0
#endif
#ifndef DIED
#define DIED 0
#endif
#ifndef REFUSED
#define REFUSED 0
#endif

struct comm {
  int ranks, rank, left;
  void **window, *memory;
};
typedef struct {
  char internal[128];
} ncclUniqueId;
struct config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

/* Ranks may be threads of one process. */
_Atomic int fake_made, fake_ended, fake_windows, fake_freed, fake_ids;

static void hang(void) {
  struct timespec time = {HANGS / 1000, HANGS % 1000 * 1000000};
  nanosleep(&time, NULL);
}

int ncclGetVersion(int* version) { return *version = VERSION, 0; }
const char* ncclGetErrorString(int result) { return result == 2 ? "unhandled system error" : "another error"; }
const char* ncclGetLastError(void* comm) { return FAILS ? "the last warning,\n in two lines" : ""; }
int ncclGetUniqueId(ncclUniqueId* id) {
  for (int i = 0; i < 128; i++) id->internal[i] = (char)(i * 2);
  id->internal[0] = (char)fake_ids++;
  return 0;
}
int ncclCommInitRankConfig(struct comm** comm, int ranks, ncclUniqueId id, int rank, struct config* config) {
  hang();
  if (config->magic != 0xcafebeef || config->version != 22902 || config->size != 88 || id.internal[127] != (char)254) return 4;
  if (rank < 0 || rank >= ranks) return 4;
  if (ranks == REFUSED && rank == ranks - 1) return 2;
  *comm = calloc(1, sizeof(struct comm));
  (*comm)->ranks = ranks;
  (*comm)->rank = rank;
  fake_made++;
  return 0;
}
int ncclCommAbort(struct comm* comm) {
  free(comm);
  fake_ended++;
  return 0;
}
int ncclCommGetAsyncError(struct comm* comm, int* result) {
  *result = comm->ranks == DIED ? 6 : 0;
  if (comm->left > 0) {
    if (--comm->left == 0) *comm->window = comm; else *result = 7;
  }
  return 0;
}
int ncclCommCount(struct comm* comm, int* count) { return *count = comm->ranks, 0; }
int ncclCommCuDevice(struct comm* comm, int* device) { return *device = 3, 0; }
int ncclCommUserRank(struct comm* comm, int* rank) { return *rank = comm->rank, 0; }
int ncclMemAlloc(void** memory, size_t bytes) { return *memory = malloc(bytes), 0; }
int ncclMemFree(void* memory) {
  free(memory);
  fake_freed++;
  return 0;
}
int ncclCommWindowRegister(struct comm* comm, void* memory, size_t bytes, void** window, int flags) {
  hang();
  *window = NULL;
  comm->memory = memory;
  if (FAILS) return FAILS;
#ifndef NO_WINDOWS
  fake_windows++;
  comm->window = window;
  comm->left = IN_PROGRESS;
  if (!IN_PROGRESS) *window = comm;
#endif
  return 0;
}
int ncclCommWindowDeregister(struct comm* comm, void* window) { return fake_windows--, 0; }
#ifndef NO_PEERS
int ncclGetPeerDevicePointer(struct comm* window, size_t offset, int peer, void** address) {
  if (peer < 0 || peer >= window->ranks) return 4;
  *address = peer == FAR ? NULL : (char*)window->memory + 0x1000 * (size_t)peer;
  return 0;
}
#endif
