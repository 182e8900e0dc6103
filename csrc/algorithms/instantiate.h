// Defines all calls, and instantiates them for one backend.
#pragma once

#include "calls.h"
#include "exchange.h"
#include "gather.h"
#include "group.h"
#include "images.h"
#include "mean.h"
#include "mix.h"
#include "order.h"
#include "reduce.h"
#include "rescore.h"
#include "sample.h"
#include "select.h"
#include "update.h"

#define DYNLOADER_INSTANTIATE_RUN(Call) template void run(InstantiatedBackend&, const Call&);

// Use once per translation unit, in namespace dynloader.
#define DYNLOADER_INSTANTIATE(Backend) \
  using InstantiatedBackend = Backend; \
  DYNLOADER_FOR_EACH_CALL(DYNLOADER_INSTANTIATE_RUN)
