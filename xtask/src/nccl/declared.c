/* What Epoxide declares of NCCL, for a C compiler to compare with the headers of a version; and what a table's row says of it.
 * The headers include CUDA's, of which they need but these types. */
#include <stddef.h>
#include <stdio.h>
#include "nccl.h"

#define SAME(function, ...) \
  _Static_assert(__builtin_types_compatible_p(__typeof__(function), __VA_ARGS__), "another type: " #function)

SAME(ncclGetVersion, ncclResult_t(int*));
SAME(ncclGetErrorString, const char*(ncclResult_t));
SAME(ncclGetLastError, const char*(ncclComm_t));
SAME(ncclGetUniqueId, ncclResult_t(ncclUniqueId*));
SAME(ncclCommInitRankConfig, ncclResult_t(ncclComm_t*, int, ncclUniqueId, int, ncclConfig_t*));
SAME(ncclCommAbort, ncclResult_t(ncclComm_t));
SAME(ncclCommGetAsyncError, ncclResult_t(ncclComm_t, ncclResult_t*));
SAME(ncclCommCount, ncclResult_t(const ncclComm_t, int*));
SAME(ncclCommCuDevice, ncclResult_t(const ncclComm_t, int*));
SAME(ncclCommUserRank, ncclResult_t(const ncclComm_t, int*));
SAME(ncclMemAlloc, ncclResult_t(void**, size_t));
SAME(ncclMemFree, ncclResult_t(void*));
SAME(ncclCommWindowRegister, ncclResult_t(ncclComm_t, void*, size_t, ncclWindow_t*, int));
SAME(ncclCommWindowDeregister, ncclResult_t(ncclComm_t, ncclWindow_t));
/* ncclGetPeerDevicePointer is in a header of C++, and compared as text. */

_Static_assert(sizeof(ncclResult_t) == sizeof(int) && ncclSuccess == 0 && ncclInProgress == 7, "other results");
_Static_assert(NCCL_CONFIG_UNDEF_INT == INT_MIN && NCCL_WIN_DEFAULT == 0, "other constants");

#define FIELD(field) printf("field " #field " %zu\n", offsetof(ncclConfig_t, field))

int main(void) {
  printf("version %d\n", NCCL_VERSION_CODE);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  printf("magic %u\n", config.magic);
  printf("config_bytes %zu\n", sizeof(ncclConfig_t));
  printf("unique_id_bytes %zu\n", sizeof(ncclUniqueId));
  FIELD(size);
  FIELD(magic);
  FIELD(version);
  FIELD(blocking);
  FIELD(netName);
  FIELD(commName);
  FIELD(numRmaCtx);
  return 0;
}
