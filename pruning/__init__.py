"""Makes a model sparse: masks, granularities, methods, sensitivity, plans that build smaller modules, training.

    analysis = workloads.channels.analyze(workloads.lowering.lower(model, example_inputs))
    table = pruning.sensitivity.measure(model, analysis, {"layer1.0.conv1": (16, 12, 8)}, heldout)
    plan = pruning.plan.make_plan("resnet20", analysis, {"layer1.0.conv1": 8}, table.ranking)
    small = plan.apply(model, example_inputs)                       # a smaller copy, checked against the masked model
    pruning.training.fit(small, train, epochs=2, heldout=heldout, teacher=model)

Methods that prune while a network trains are in `pruning.methods`; their life in a user's own loop is told in
`pruning.methods.base`.
"""
