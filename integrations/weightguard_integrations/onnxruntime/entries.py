"""The configuration entries of onnxruntime's session options, by what they do to a session.

Options do not list their entries, so that each must be asked for by its name. A test compares these
names with those in onnxruntime's own library.
"""

from __future__ import annotations

DECIDING = (
    "ep.cpu.qmoe_deferred_scale", "mlas.disable_kleidiai",
    "mlas.enable_gemm_fastmath_arm64_bfloat16", "mlas.kleidiai.conv_igemm_max_work",
    "mlas.nchwc_depthwise_sliding", "mlas.nchwc_pointwise_conv_max_input_channel_batch",
    "mlas.qnbit.force_fp32", "mlas.use_lut_gemm",
    "optimization.constant_folding_max_output_size_in_bytes",
    "optimization.disable_specified_optimizers", "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation", "optimization.minimal_build_optimizations",
    "session.debug_layout_transformation", "session.disable_aot_function_inlining",
    "session.disable_double_qdq_remover", "session.disable_prepacking",
    "session.disable_qdq_constant_folding", "session.disable_quant_qdq",
    "session.enable_dq_matmulnbits_fusion", "session.enable_quant_qdq_cleanup",
    "session.execution_mode", "session.function_expansion_byte_limit",
    "session.function_expansion_node_limit", "session.gqa_value_layout",
    "session.graph_optimization_level", "session.graph_optimizations_loop_level",
    "session.inter_op_num_threads", "session.intra_op_num_threads",
    "session.kernel_dispatch_policy", "session.layer_assignment_settings",
    "session.max_shape_override", "session.name_based_layer_assignment",
    "session.prepack.enable_parallel", "session.qdq_matmulnbits_accuracy_level",
    "session.qdq_matmulnbits_block_size", "session.qdqisint8allowed",
    "session.set_denormal_as_zero", "session.use_deterministic_compute",
    "session.x64quantprecision",
)  # fmt: skip
"""Those that change graphs, packing or arithmetic."""

OTHER = (
    "ep.cpu.use_arena", "session.allow_released_opsets_only",
    "session.collect_node_memory_stats_to_file", "session.disable_cpu_ep_fallback",
    "session.disable_model_compile",
    "session.dynamic_block_base", "session.enable_cpu_mem_arena", "session.enable_mem_pattern",
    "session.enable_moe_expert_counting", "session.enable_moe_expert_statistics",
    "session.enable_profiling", "session.fail_on_suboptimal_compiled_model",
    "session.external_data_loader.chunk_bytes",
    "session.external_data_loader.min_size_bytes",
    "session.external_data_loader.pinned_memory_bytes", "session.external_data_loader.threads",
    "session.force_spinning_stop", "session.inter_op.allow_spinning",
    "session.inter_op.spin_backoff_max", "session.inter_op.spin_duration_us",
    "session.intra_op.allow_spinning", "session.intra_op.spin_backoff_max",
    "session.intra_op.spin_duration_us", "session.intra_op_thread_affinities",
    "session.log_id", "session.log_severity_level", "session.log_verbosity_level",
    "session.record_ep_graph_assignment_info", "session.strict_shape_type_inference",
    "session.strict_workspace_verification", "session.use_device_allocator_for_initializers",
    "session.use_env_allocators", "session.use_per_session_threads",
)  # fmt: skip
"""Those that do not."""

REFUSED = (
    "ep.context_enable", "ep.context_file_path",
    "ep.context_model_external_initializers_file_name", "ep.context_source_model_path",
    "session.compile_only", "session.enable_saved_runtime_optimizations",
    "session.load_model_format", "session.model_external_initializers_file_folder_path",
    "session.node_partition_config_file",
    "session.optimized_model_external_initializers_file_name",
    "session.optimized_model_external_initializers_min_size_in_bytes",
    "session.optimized_model_filepath", "session.resource_cuda_partitioning_settings",
    "session.save_external_prepacked_constant_initializers", "session.save_model_format",
    "session.use_external_initializer_file_buffers_directly",
    "session.use_ort_model_bytes_directly", "session.use_ort_model_bytes_for_initializers",
)  # fmt: skip
"""Those that read or write model files by themselves, past what was verified."""

FOREIGN_PREFIXES = ("ep.", "session.moe", "com.")
"""Names of other providers' entries: those sessions take a callable that makes the options."""
