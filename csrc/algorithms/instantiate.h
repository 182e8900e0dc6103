// All calls, defined and instantiated for one backend.
#pragma once

#include "calls.h"
#include "gather.h"
#include "images.h"
#include "mean.h"
#include "order.h"
#include "rescore.h"
#include "sample.h"
#include "select.h"
#include "update.h"

#define DYNLOADER_INSTANTIATE(Backend)                  \
  template void run(Backend&, const TopK&);             \
  template void run(Backend&, const EpsilonGreedy&);    \
  template void run(Backend&, const WeightedSample&);   \
  template void run(Backend&, const CheckWeights&);     \
  template void run(Backend&, const InfoBatch&);        \
  template void run(Backend&, const Order&);            \
  template void run(Backend&, const Gather&);           \
  template void run(Backend&, const GatherRows&);       \
  template void run(Backend&, const GatherImages&);     \
  template void run(Backend&, const ScoreMean&);        \
  template void run(Backend&, const PowerWeights&);     \
  template void run(Backend&, const VisitBonus&);       \
  template void run(Backend&, const Update&);           \
  template void run(Backend&, const UpdateForgetting&); \
  template void run(Backend&, const CountSelected&);    \
  template void run(Backend&, const Spread&)
