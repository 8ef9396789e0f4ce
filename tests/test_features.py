"""The features of five existing systems, and the tests that hold them here; the flags of docs/features.md exist.

Rows are those of a list of features: T1 is Text-JEPA, T2 t-jepa, T3 vicreg-for-sentence-embedding, T4 JEPA, T5 jepas.
Rows without a test are those of transformers' own schedules and clipping, and layer dropout, which is not offered.
"""

import re
from pathlib import Path

from text_jepa.train import arguments
from text_jepa.train.arguments import TextJepaTrainingArguments


TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/features.md"

LAST_ROWS = {"T1": 29, "T2": 20, "T3": 12, "T4": 16, "T5": 17}
WITHOUT_TEST = {"T1-18", "T1-19", "T5-16"}

ROWS = {
    "T1-01": [
        "train/test_pretraining_arguments.py::test_values_of_the_file_come_first_and_flags_win",
        "train/test_pretraining_arguments.py::test_a_mistake_in_the_file_names_file_key_and_remedy",
    ],
    "T1-02": [
        "test_bad_input.py::test_a_folder_that_holds_something_is_refused_and_left_alone",
    ],
    "T1-03": [
        "test_end_to_end.py::test_arguments_file_repeats_the_run",
        "data/test_masking.py::test_same_seed_and_epoch_give_the_same_masks_and_everything_else_gives_others",
    ],
    "T1-04": [
        "data/test_corpus.py::test_documents_of_every_kind_of_file_arrive_in_order",
        "data/test_corpus.py::test_a_folder_with_splits_is_loaded_like_a_dataset_of_the_hub",
    ],
    "T1-05": [
        "data/test_coverage.py::test_each_text_once_for_ranks_and_workers",
        "data/test_batching.py::test_every_text_of_a_stream_comes_once_per_pass",
        "train/test_checkpoints.py::test_resumed_run_ends_with_the_same_bits",
    ],
    "T1-06": [
        "train/test_checkpoints.py::test_resumed_run_ends_with_the_same_bits",
    ],
    "T1-07": [
        "train/test_recipes.py::test_recipe_trains_and_its_encoder_opens",
    ],
    "T1-08": [
        "train/test_trackers.py::test_trackio_gets_every_figure_in_one_run_though_it_was_resumed_and_evaluated_at_the_end",
        "train/test_trackers.py::test_a_tracker_that_is_not_installed_is_named_with_its_remedy",
    ],
    "T1-09": [
        "train/test_trainer.py::test_line_of_health_has_loss_relative_loss_rank_decay_and_speed",
        "train/test_trainer.py::test_metrics_file_starts_anew_with_a_new_run",
    ],
    "T1-10": [
        "test_end_to_end.py::test_new_encoder_takes_the_shape_of_a_configuration",
        "test_end_to_end.py::test_training_continues_from_any_folder",
    ],
    "T1-11": [
        "test_backbones.py::test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient",
    ],
    "T1-12": [
        "train/test_trainer.py::test_accumulated_small_batches_equal_one_large_batch",
        "train/test_trainer.py::test_target_encoder_moves_once_per_optimizer_step_to_the_average_after_the_step",
    ],
    "T1-13": [
        "test_backbones.py::test_dropping_equals_masking",
        "test_backbones.py::test_no_prediction_knows_the_tokens_at_hidden_positions",
    ],
    "T1-14": [
        "test_end_to_end.py::test_new_encoder_takes_the_shape_of_a_configuration",
        "test_configuration.py::test_a_preset_refuses_fields_that_its_encoder_does_not_have",
    ],
    "T1-15": [
        "test_configuration.py::test_every_field_changes_the_model_or_its_outputs",
    ],
    "T1-16": [
        "data/test_masking.py::test_spans_by_number_are_so_many_disjoint_spans_of_uniform_length",
        "data/test_masking.py::test_spans_by_number_shrink_alike_where_they_would_hide_more_than_the_ratio",
        "data/test_tokenization.py::test_documents_shorter_than_asked_are_left_out",
    ],
    "T1-17": [
        "train/test_trainer.py::test_decay_follows_its_schedule",
        "train/test_trainer.py::test_default_decays_average_over_one_and_ten_percent_of_the_run",
    ],
    "T1-18": [],
    "T1-19": [],
    "T1-20": [
        "train/test_trainer.py::test_evaluation_uses_the_same_masks_whatever_the_pass",
    ],
    "T1-21": [
        "train/test_trainer.py::test_log_names_every_term_and_measure",
        "test_metrics.py::test_retrieval_matches_the_loop",
        "test_metrics.py::test_wrong_target_cosines_leave_out_the_right_ones",
    ],
    "T1-22": [
        "probe/test_online.py::test_the_exported_encoder_is_the_best_one_and_stays_so_when_the_finished_run_is_resumed",
        "probe/test_online.py::test_a_choice_that_cannot_be_made_is_refused_before_anything_is_written",
    ],
    "T1-23": [
        "train/test_trainer.py::test_terms_of_the_evaluation_add_up_with_a_short_last_batch",
        "train/test_trainer_terms.py::test_the_evaluation_tells_short_spans_from_long_ones",
    ],
    "T1-24": [
        "probe/test_tasks.py::test_every_glue_task_has_its_columns_and_metrics",
        "probe/test_report.py::test_the_score_is_the_mean_over_seeds_with_their_deviation",
    ],
    "T1-25": [
        "probe/test_finetuning.py::test_overrides_win_over_the_recipe",
        "probe/test_report.py::test_every_task_of_glue_has_its_file",
    ],
    "T1-26": [
        "test_end_to_end.py::test_exported_encoder_opens_without_package_and_flags",
        "test_end_to_end.py::test_model_card_is_complete_and_true",
    ],
    "T1-27": [
        "test_backbones.py::test_pretraining_from_an_encoder_folder_starts_the_target_encoder_as_a_copy",
    ],
    "T1-28": [
        "test_integration.py::test_its_vectors_are_ours",
        "encoders/test_embeddings.py::test_vectors_equal_those_of_each_text_alone",
    ],
    "T1-29": [
        "test_benchmarks.py::test_recipe_of_a_gpu_size_is_understood_and_says_that_it_was_not_run",
    ],
    "T2-01": [
        "test_backbones.py::test_dropping_equals_masking",
    ],
    "T2-02": [
        "test_modeling.py::test_a_packed_pass_equals_one_pass_per_span",
        "test_modeling.py::test_no_gradient_of_a_prediction_reaches_the_queries_of_other_spans",
    ],
    "T2-03": [
        "data/test_masking.py::test_strategies_are_drawn_by_weight_and_each_mask_is_of_its_own",
        "train/test_trainer_terms.py::test_losses_of_strategies_are_logged_and_their_mean_over_tokens_is_the_latent_loss",
        "train/test_recipes.py::test_each_mask_strategy_gets_a_mask_token_of_its_own",
    ],
    "T2-04": [
        "data/test_masking.py::test_span_lengths_are_the_quantiles_of_the_stated_distribution",
        "data/test_masking.py::test_with_a_context_ratio_what_is_visible_lies_in_a_block_of_that_share",
    ],
    "T2-05": [
        "test_modeling.py::test_many_masks_in_one_pass_equal_a_pass_for_each",
        "train/test_trainer_terms.py::test_masks_one_after_the_other_learn_and_log_what_all_in_one_pass_do",
    ],
    "T2-06": [
        "train/test_trainer.py::test_target_encoder_moves_once_per_optimizer_step_to_the_average_after_the_step",
        "train/test_trainer.py::test_decay_never_falls_and_stays_a_decay_in_runs_of_any_length",
    ],
    "T2-07": [
        "train/test_trainer_terms.py::test_weight_decay_follows_its_cosine_also_after_a_resume",
        "train/test_trainer_terms.py::test_a_warm_up_rises_from_its_start_to_the_peak_and_a_cosine_falls_to_its_end",
    ],
    "T2-08": [
        "train/test_trainer.py::test_optimizer_holds_what_trains_and_spares_vectors_from_decay",
    ],
    "T2-09": [
        "test_configuration.py::test_every_field_changes_the_model_or_its_outputs",
    ],
    "T2-10": [
        "test_end_to_end.py::test_arguments_file_repeats_the_run",
    ],
    "T2-11": [
        "test_bad_input.py::test_a_folder_that_holds_something_is_refused_and_left_alone",
        "train/test_checkpoints.py::test_command_goes_on_where_it_was",
    ],
    "T2-12": [
        "data/test_tokenization.py::test_a_tokenized_corpus_is_read_from_the_cache_even_after_the_tokenizer_was_used",
        "test_end_to_end.py::test_preparing_ends_before_training",
    ],
    "T2-13": [
        "train/test_checkpoints.py::test_resumed_run_ends_with_the_same_bits",
        "data/test_batching.py::test_the_order_is_a_pure_function_of_seed_and_epoch",
    ],
    "T2-14": [
        "test_backbones.py::test_half_precision_runs_with_a_float32_target_encoder",
    ],
    "T2-15": [
        "train/test_trainer.py::test_accumulated_small_batches_equal_one_large_batch",
    ],
    "T2-16": [
        "probe/test_online.py::test_the_exported_encoder_is_the_best_one_and_stays_so_when_the_finished_run_is_resumed",
    ],
    "T2-17": [
        "test_end_to_end.py::test_arguments_file_repeats_the_run",
    ],
    "T2-18": [
        "train/test_trackers.py::test_tensorboard_gets_every_figure_of_a_run_that_was_resumed_and_no_secret",
        "train/test_trainer.py::test_log_names_every_term_and_measure",
    ],
    "T2-19": [
        "data/test_masking.py::test_an_unknown_token_that_is_also_the_end_of_text_is_never_hidden",
    ],
    "T2-20": [
        "test_end_to_end.py::test_model_card_is_complete_and_true",
    ],
    "T3-01": [
        "test_objectives.py::test_the_pooled_context_predicts_the_pooled_text_or_its_view",
    ],
    "T3-02": [
        "test_objectives.py::test_variance_and_covariance_are_the_formulas_of_the_paper",
        "test_objectives.py::test_vicreg_is_symmetric_over_both_sides_of_the_expander",
        "train/test_distributed.py::test_a_step_of_two_processes_is_that_of_one_on_the_joint_batch",
    ],
    "T3-03": [
        "test_objectives.py::test_what_only_training_needs_is_in_checkpoints_and_stays_out_of_encoders",
    ],
    "T3-04": [
        "data/test_masking.py::test_a_crop_is_a_run_of_whole_words_of_the_share_asked_for",
        "data/test_masking.py::test_both_crops_are_runs_that_differ_and_masks_are_drawn_for_what_is_left",
        "data/test_masking.py::test_a_deletion_keeps_whole_words_in_their_order_and_all_words_equally_often",
    ],
    "T3-05": [
        "data/test_masking.py::test_the_same_view_is_the_text",
        "test_objectives.py::test_simcse_is_infonce_of_two_dropout_passes",
    ],
    "T3-06": [
        "test_end_to_end.py::test_exported_encoder_opens_without_package_and_flags",
        "test_integration.py::test_its_similarity_evaluator_gives_our_raw_correlations",
    ],
    "T3-07": [
        "probe/test_online.py::test_a_similarity_is_scored_by_raw_and_centred_cosines",
    ],
    "T3-08": [
        "probe/test_predictors.py::test_positives_come_last_among_equals_whatever_the_order_of_the_file",
        "probe/test_tasks.py::test_reranking_queries_and_texts",
    ],
    "T3-09": [
        "train/test_recipes.py::test_a_corpus_is_a_file_of_its_own_that_goes_over_a_recipe",
        "train/test_pretraining_arguments.py::test_of_several_files_the_last_wins_and_flags_over_all",
        "data/test_corpus.py::test_a_folder_with_splits_is_loaded_like_a_dataset_of_the_hub",
    ],
    "T3-10": [
        "test_end_to_end.py::test_training_continues_from_any_folder",
    ],
    "T3-11": [
        "probe/test_online.py::test_the_exported_encoder_is_the_best_one_and_stays_so_when_the_finished_run_is_resumed",
    ],
    "T3-12": [
        "train/test_trainer.py::test_log_names_every_term_and_measure",
    ],
    "T4-01": [
        "test_modeling.py::test_a_pure_jepa_has_no_token_head",
    ],
    "T4-02": [
        "test_modeling.py::test_the_target_encoder_decides_the_loss_and_takes_no_gradient",
    ],
    "T4-03": [
        "data/test_masking.py::test_blocks_have_each_the_share_asked_for_and_do_not_overlap",
    ],
    "T4-04": [
        "test_modeling.py::test_no_prediction_knows_a_hidden_token",
        "test_objectives.py::test_a_perceptron_takes_each_query_by_itself",
    ],
    "T4-05": [
        "test_backbones.py::test_a_new_model_is_initialised_and_its_target_encoder_a_frozen_copy",
    ],
    "T4-06": [
        "test_modeling.py::test_latent_distance_is_the_plain_formula",
        "test_modeling.py::test_targets_are_the_plain_formula_and_know_nothing_of_padding",
    ],
    "T4-07": [
        "test_objectives.py::test_regularizers_of_tokens_read_every_visible_state_and_nothing_else",
        "data/test_masking.py::test_of_a_pair_of_complements_each_hides_what_the_other_sees",
    ],
    "T4-08": [
        "train/test_recipes.py::test_recipe_trains_and_its_encoder_opens",
    ],
    "T4-09": [
        "train/test_trainer_terms.py::test_a_schedule_of_the_mask_ratio_follows_the_optimizer_step_over_passes",
        "data/test_batching.py::test_masks_of_a_schedule_survive_workers_and_a_resume",
    ],
    "T4-10": [
        "probe/test_run.py::test_every_system_is_scored_by_every_mode_on_the_same_rows",
        "probe/test_online.py::test_a_classification_is_scored_on_rows_that_were_not_fitted",
    ],
    "T4-11": [
        "train/test_checkpoints.py::test_command_goes_on_where_it_was",
    ],
    "T4-12": [
        "train/test_trainer.py::test_optimizer_holds_what_trains_and_spares_vectors_from_decay",
    ],
    "T4-13": [
        "test_end_to_end.py::test_output_folder_holds_what_the_plan_says",
    ],
    "T4-14": [
        "train/test_trainer.py::test_log_names_every_term_and_measure",
    ],
    "T4-15": [
        "data/test_tokenization.py::test_the_next_sentence_is_the_following_part_of_the_same_document",
    ],
    "T4-16": [
        "test_compare.py::test_a_card_gets_the_first_table_once_with_its_command",
    ],
    "T5-01": [
        "test_configuration.py::test_preset_has_its_documented_size",
        "test_configuration.py::test_the_static_preset_is_an_encoder_without_layers",
    ],
    "T5-02": [
        "test_end_to_end.py::test_a_run_begins_with_the_part_of_a_checkpoint_that_was_asked_for",
        "test_end_to_end.py::test_trained_layers_see_the_same_positions_whatever_number_the_padding_has",
        "test_end_to_end.py::test_training_continues_from_any_folder",
    ],
    "T5-03": [
        "data/test_masking.py::test_an_interval_of_ratios_hides_every_position_equally_often_and_is_drawn_anew_by_every_mask",
        "data/test_masking.py::test_with_a_context_ratio_what_is_visible_lies_in_a_block_of_that_share",
    ],
    "T5-04": [
        "data/test_masking.py::test_words_are_hidden_independently_and_a_special_token_ends_a_word",
    ],
    "T5-05": [
        "train/test_trainer.py::test_decay_follows_its_schedule",
    ],
    "T5-06": [
        "data/test_tokenization.py::test_pieces_of_a_document_together_are_the_document_and_of_no_other",
        "test_end_to_end.py::test_preparing_ends_before_training",
    ],
    "T5-07": [
        "data/test_corpus.py::test_held_out_documents_are_a_share_and_none_is_lost",
    ],
    "T5-08": [
        "data/test_batching.py::test_batches_of_texts_of_similar_length_pad_little",
        "data/test_batching.py::test_batches_of_a_stream_pad_little_over_the_border_of_a_pass",
    ],
    "T5-09": [
        "train/test_distributed.py::test_two_processes_leave_one_complete_folder",
    ],
    "T5-10": [
        "probe/test_online.py::test_the_exported_encoder_is_the_best_one_and_stays_so_when_the_finished_run_is_resumed",
    ],
    "T5-11": [
        "train/test_trainer.py::test_log_names_every_term_and_measure",
    ],
    "T5-12": [
        "test_benchmarks.py::test_scaling_leaves_a_table_of_each_axis",
    ],
    "T5-13": [
        "test_backbones.py::test_weights_that_a_checkpoint_lacks_are_drawn_as_in_a_new_model",
    ],
    "T5-14": [
        "encoders/test_embeddings.py::test_vectors_equal_those_of_each_text_alone",
    ],
    "T5-15": [
        "train/test_trainer_terms.py::test_the_same_schedule_falls_as_one_cycle_does_and_peaks_and_ends_where_it_does",
    ],
    "T5-16": [],
    "T5-17": [
        "probe/test_finetuning.py::test_every_kind_of_folder_learns_and_predicts_all_other_splits",
    ],
}

# What is in none of them.
OURS = [
    "data/test_tokenization.py::test_a_stream_of_documents_gives_the_windows_of_the_map_style_corpus_in_its_order",
    "probe/test_documents.py::test_the_sentence_says_by_how_much_more_or_less_often",
    "share/test_model_card.py::test_the_card_is_complete_without_editing",
    "test_end_to_end.py::test_a_run_exports_weights_between_its_start_and_its_end_and_keeps_its_end",
    "test_end_to_end.py::test_exported_encoder_opens_without_package_and_flags",
    "test_end_to_end.py::test_streaming_run_trains_and_exports",
    "test_modeling.py::test_candidates_hold_every_label_once_and_labels_map_back",
    "test_objectives.py::test_mlm_is_the_cross_entropy_of_masked_language_models",
    "test_objectives.py::test_pooled_targets_are_centred_by_their_running_mean_and_whitened",
    "test_objectives.py::test_running_targets_use_the_statistics_so_far_and_only_training_updates_them",
    "test_objectives.py::test_sigreg_is_the_epps_pulley_statistic_of_each_slice",
    "test_objectives.py::test_targets_of_spans_see_the_hidden_tokens_alone_at_their_places",
    "test_objectives.py::test_the_optimum_of_infonce_is_at_aligned_orthogonal_pairs",
    "test_objectives.py::test_the_pooled_context_of_queries_is_the_mean_of_the_visible_states",
    "test_objectives.py::test_whitened_vectors_are_hardly_correlated",
    "train/test_distributed.py::test_two_processes_learn_of_documents_what_one_does",
    "train/test_trainer_terms.py::test_a_frozen_target_encoder_stays_bit_exact_and_then_moves",
    "train/test_trainer_terms.py::test_every_objective_is_watched_and_logs_no_decay_of_an_encoder_that_is_not_there",
]


def test_every_row_is_there_once_and_in_order():
    numbered = [f"{system}-{number:02}" for system, last in LAST_ROWS.items() for number in range(1, last + 1)]
    assert list(ROWS) == numbered
    assert {row for row, tests in ROWS.items() if not tests} == WITHOUT_TEST


def test_every_test_that_is_named_exists():
    named = {test for tests in ROWS.values() for test in tests} | set(OURS)
    missing = []
    for test in sorted(named):
        file, name = test.split("::")
        path = TESTS / file
        if not path.is_file() or f"\ndef {name}(" not in path.read_text():
            missing.append(test)
    assert missing == []


def test_every_flag_that_the_page_names_exists():
    """Flags of the probe stand in cells that name it."""
    classes = (
        arguments.ModelArguments,
        arguments.DataArguments,
        arguments.ObjectiveArguments,
        TextJepaTrainingArguments,
    )
    known = {field for cls in classes for field in cls.__dataclass_fields__}
    cells = [line.split("|")[2] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    flags = {flag for cell in cells if "run_probe.py" not in cell for flag in re.findall(r"--(\w+)", cell)}
    assert flags
    assert flags - known == set()


def test_every_page_that_the_table_names_exists():
    pages = set(re.findall(r"\]\(([\w/-]+\.md)\)", PAGE.read_text()))
    assert pages
    assert [page for page in pages if not (PAGE.parent / page).is_file()] == []
