// Makes a PyTorch without CUDA choose operators as one with CUDA does. It can compute nothing: fake tensors alone may be
// on its devices. PRETEND_GPUS says how many devices there are (default: 1).
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>

namespace {

thread_local c10::DeviceIndex current = 0;

c10::DeviceIndex gpus() {
  const char* count = std::getenv("PRETEND_GPUS");
  return static_cast<c10::DeviceIndex>(count ? std::atoi(count) : 1);
}

c10::DeviceIndex exchange(c10::DeviceIndex next) {
  const c10::DeviceIndex before = current;
  current = next;
  return before;
}

// The autograd engine asks it for the devices and for the streams of its threads.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return gpus(); }
  c10::Device getDevice() const override { return {c10::DeviceType::CUDA, current}; }
  c10::Device exchangeDevice(c10::Device next) const override { return {c10::DeviceType::CUDA, exchange(next.index())}; }
  void setDevice(c10::Device next) const override { current = next.index(); }
  void uncheckedSetDevice(c10::Device next) const noexcept override { current = next.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return c10::Stream(c10::Stream::DEFAULT, stream.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

// ATen asks it which kernels there are: cudnn_batch_norm and native_dropout are chosen by what it answers. The registry
// finds it by the name CUDAHooks.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  long versionCuDNN() const override { return 91000; }
  long versionRuntimeCuDNN() const override { return 91000; }
  double batchnormMinEpsilonCuDNN() const override { return 0.0; }
  c10::DeviceIndex deviceCount() const override { return gpus(); }
  int getNumGPUs() const override { return gpus(); }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex next) const override { current = next; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex next) const override { return exchange(next); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex next) const override { return exchange(next); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard)
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}
