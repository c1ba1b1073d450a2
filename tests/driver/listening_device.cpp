// A CUDA device that only listens: the driver's library as Triton calls it, and what PyTorch asks of
// a device before it lets a fake tensor be on it. Nothing is computed; loads and launches are told.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cuda.h"

using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, FakeGuardImpl<DeviceType::CUDA>)
}

// Its name is the one that PyTorch looks for. No `override`: which of these there are varies.
struct CUDAHooks : public at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const {}
  bool isBuilt() const { return true; }
  bool isAvailable() const { return true; }
  bool hasCUDA() const { return true; }
  c10::DeviceIndex deviceCount() const { return 8; }
  bool hasPrimaryContext(c10::DeviceIndex) const { return true; }
};
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

typedef void (*OnLoad)();
typedef void (*OnLaunch)(int64_t function, int64_t stream, int blocks_x, int blocks_y, int blocks_z,
                         int threads, int shared_memory, int cooperative);
static OnLoad on_load;
static OnLaunch on_launch;
static int64_t modules;

static void leave_now(int status, void *) {
  fflush(nullptr);
  _exit(status);
}

extern "C" {
// Autograd's threads of a device hold modes, which are Python's: when they end after it, they abort.
void leave() { on_exit(leave_now, nullptr); }
void listen(OnLoad load, OnLaunch launch) { on_load = load, on_launch = launch; }
int current_device() { return Guard::getDeviceIndex(); }
void set_device(int index) { Guard::setDeviceIndex(index); }
int64_t current_stream(int index) { return Guard::getCurrentStreamIdFor(index); }
void set_stream(int index, int64_t id) {
  c10::Device device(c10::DeviceType::CUDA, index);
  Guard().exchangeStream(c10::Stream(c10::Stream::UNSAFE, device, id));
}

#undef cuDevicePrimaryCtxRetain
#undef cuModuleGetFunction
#undef cuStreamIsCapturing
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *size, CUlimit) { return *size = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  return *context = (CUcontext)1, CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    default: *value = 1024;
  }
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 255
           : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                  : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char **text) { return *text = "error", CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *) {
  *module = (CUmodule)++modules;
  if (on_load) on_load();
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *) {
  return *function = (CUfunction)module, CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute, CUdeviceptr pointer) {
  return *(CUdeviceptr *)value = pointer, CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
  int cooperative = 0;
  for (unsigned i = 0; i < config->numAttrs; i++)
    if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
      cooperative = config->attrs[i].value.cooperative;
  if (config->gridDimY > 65535 || config->gridDimZ > 65535) return CUDA_ERROR_INVALID_VALUE;
  if (on_launch)
    on_launch((int64_t)function, (int64_t)config->hStream, config->gridDimX, config->gridDimY,
              config->gridDimZ, config->blockDimX, config->sharedMemBytes, cooperative);
  return CUDA_SUCCESS;
}
}
