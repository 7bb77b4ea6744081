"""What the worker promises about bad inputs and faults, and the tests that show it: 102 rows.

A row that no test shows yet, or only in part, says so in ``missing``. After a change:
``make promises`` (or ``python -m tests.promises_page``, which runs nothing) writes the page anew.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One row: what goes wrong, what the worker does then, and which tests show it."""

    row: int
    fault: str
    answer: str
    tests: tuple[str, ...] = ()
    """``file::name``, from the tests folder."""
    missing: str = ""
    """What is not shown yet."""


SECTIONS = {
    "Request": range(1, 21),
    "Reference image": range(21, 32),
    "Network": range(32, 47),
    "Models and GPU": range(47, 63),
    "Encoding": range(63, 71),
    "Storage": range(71, 82),
    "Callback": range(82, 91),
    "Lifecycle": range(91, 103),
}


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}.py::test_{name}" for name in names)


PROMISES = (
    # Request
    Promise(1, "`input` is absent or is no object", "INVALID_REQUEST at `/input`",
            _of("request/test_parse", "an_input_that_is_no_object_is_refused_with_its_pointer",
                "a_job_without_input_is_refused_with_its_pointer")),
    Promise(2, "a field that there is not", "INVALID_REQUEST with the nearest field that there is",
            _of("request/test_parse", "unknown_field_names_the_nearest_known_one",
                "unknown_field_with_nothing_near_points_to_the_documentation")
            + _of("test_fuzz",
                  "a_fuzzed_request_is_planned_or_refused_and_never_planned_when_broken")),
    Promise(3, "NaN, infinities, numbers that overflow",
            "INVALID_REQUEST before the schema's own checks, which they pass or crash",
            _of("request/test_parse", "a_number_that_is_not_finite_is_refused_before_the_schema",
                "a_number_that_is_not_finite_is_found_however_deep_it_hides")),
    Promise(4, "a boolean for a number", "INVALID_REQUEST; while 1.0 does for 1",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule",
                "an_integer_may_be_written_with_a_zero_fraction")),
    Promise(5, "a seed over 63 bits", "INVALID_REQUEST; the largest one is kept to the digit",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule",
                "a_seed_that_is_given_is_kept_to_the_last_digit",
                "the_last_output_may_have_the_largest_seed")),
    Promise(6, "deep nesting, floods of values", "INVALID_REQUEST, and no recursion",
            _of("request/test_parse", "deep_nesting_is_refused_without_a_recursion_error",
                "more_values_than_any_request_needs_are_refused",
                "a_flood_of_values_is_refused_without_being_copied")),
    Promise(7, "an empty, invisible or endless prompt",
            "INVALID_REQUEST; what the model can't read of a long one is told in a warning",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule",
                "a_prompt_may_be_left_out_only_beside_an_image")
            + _of("pipelines/test_generate", "a_long_prompt_is_cut_with_a_warning")),
    Promise(8, "NUL, control characters, halves of surrogate pairs", "INVALID_REQUEST",
            _of("request/test_parse", "text_that_breaks_what_comes_after_is_refused",
                "a_field_name_that_is_no_plain_text_is_refused",
                "a_prompt_may_hold_newlines_tabs_emoji_and_chinese")),
    Promise(9, "a newline behind a value that has a pattern", "INVALID_REQUEST",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule",
                "an_unknown_choice_is_refused_with_the_choices")),
    Promise(10, "sizes of zero, below it, or beyond reason", "INVALID_REQUEST",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule",
                "a_side_that_is_zero_negative_absurd_or_odd_is_refused")),
    Promise(11, "no frames, or more than there can be", "INVALID_REQUEST",
            _of("request/test_parse", "a_wrong_value_is_refused_naming_field_and_rule")
            + _of("planning/test_plan",
                  "a_duration_beyond_the_models_longest_is_refused_in_seconds_and_frames")
            + _of("planning/test_segments",
                  "more_than_eight_segments_are_refused_naming_the_longest")),
    Promise(12, "more work than a job may take (pixels x frames x steps)",
            "INVALID_REQUEST before anything is loaded",
            _of("planning/test_plan", "too_much_work_is_refused_before_anything_is_loaded",
                "the_work_limit_counts_every_output")
            + _of("planning/test_segments", "the_work_limit_is_for_each_segment")),
    Promise(13, "fields that contradict each other or the model", "INVALID_REQUEST at one of them",
            _of("request/test_parse", "a_contradiction_is_refused_at_the_field_that_breaks_it",
                "a_field_beside_its_alias_is_refused_naming_both")
            + _of("planning/test_model_choice",
                  "a_named_model_that_can_not_is_refused_naming_those_that_can")),
    Promise(14, "a preset or model that there is not", "INVALID_REQUEST with those that there are",
            _of("request/test_parse", "an_unknown_choice_is_refused_with_the_choices")),
    Promise(15, "a model that is not installed",
            "MODEL_UNAVAILABLE with the command that installs it; no other takes its place",
            _of("planning/test_plan",
                "a_model_that_is_not_installed_comes_with_the_command_that_installs_it",
                "a_named_model_is_never_swapped_for_a_better_one")
            + _of("test_job", "a_model_that_is_not_installed_is_named_with_its_command")),
    Promise(16, "a preset and fields of its own", "the fields win, the rest is the preset's",
            _of("request/test_parse", "a_field_wins_over_its_preset_and_leaves_the_others",
                "a_duration_replaces_the_presets_frame_count")),
    Promise(17, "a file format of the other mode", "INVALID_REQUEST",
            _of("request/test_parse", "each_mode_has_its_formats_and_the_first_is_the_default",
                "a_contradiction_is_refused_at_the_field_that_breaks_it")),
    Promise(18, "a wrong value that is a secret", "pointer and rule come back, the value never",
            _of("request/test_parse", "a_failing_value_is_never_repeated",
                "a_text_in_a_field_that_takes_none_is_never_repeated",
                "a_broken_bucket_field_is_refused_without_its_value")),
    Promise(19, "a broken schema or preset file", "CONFIG_INVALID at start",
            _of("request/test_parse", "a_broken_schema_file_is_a_configuration_error_at_start",
                "a_broken_preset_file_is_a_configuration_error_at_start",
                "a_missing_schema_file_is_a_configuration_error_that_hides_the_path")),
    Promise(20, "questions about the worker beside fields of a video",
            "INVALID_REQUEST, and no model is loaded",
            _of("reports/test_info", "a_question_with_fields_of_a_generation_is_refused",
                "a_generation_with_fields_of_a_question_is_refused",
                "no_question_imports_torch")),
    # Reference image
    Promise(21, "a small file of enormous pixels", "IMAGE_REJECTED before a pixel is decoded",
            _of("inputs/test_images", "pixel_bomb_is_rejected_before_it_is_decoded",
                "jpeg_bomb_is_rejected_before_it_is_decoded", "webp_canvas_bomb_is_rejected")
            + _of("inputs/test_image_parts",
                  "a_file_of_too_many_parts_is_rejected_before_it_is_decoded")),
    Promise(22, "TIFF, EPS, PSD, FITS and other formats", "IMAGE_REJECTED; no decoder sees them",
            _of("inputs/test_images", "other_format_is_rejected_by_its_bytes_and_named")),
    Promise(23, "SVG, PDF, an error page instead of an image",
            "IMAGE_REJECTED by the bytes, named for what it is",
            _of("inputs/test_images", "other_format_is_rejected_by_its_bytes_and_named",
                "sniffing_hostile_markup_takes_no_time")),
    Promise(24, "a file that is cut off", "IMAGE_REJECTED",
            _of("inputs/test_images", "truncated_file_is_rejected",
                "damaged_file_is_decoded_or_rejected_and_nothing_else")
            + _of("test_fuzz", "a_fuzzed_image_is_decoded_or_rejected_within_its_memory")),
    Promise(25, "no bytes, one pixel, a line of pixels", "IMAGE_REJECTED",
            _of("inputs/test_images", "empty_file_is_rejected", "tiny_image_is_rejected",
                "extreme_aspect_is_rejected")),
    Promise(26, "an animated picture", "its first frame, with a warning",
            _of("inputs/test_images", "animated_image_gives_its_first_frame_and_a_warning")),
    Promise(27, "turned, CMYK, 16 bits, palettes, transparency",
            "upright 8-bit RGB; transparency on white, with a warning",
            _of("inputs/test_images", "exif_orientation_is_applied",
                "mode_becomes_rgb_with_the_same_color",
                "transparency_is_put_on_white_with_a_warning")),
    Promise(28, "metadata that unpacks to gigabytes", "IMAGE_REJECTED",
            _of("inputs/test_images", "compressed_metadata_bomb_in_a_png_is_rejected",
                "many_texts_in_a_png_are_rejected_before_they_fill_memory")),
    Promise(29, "bad base64, a data URI of no image, too much of it",
            "IMAGE_REJECTED; the size is known before it is decoded",
            _of("inputs/test_images", "bad_inline_data_is_rejected",
                "inline_data_over_the_limit_is_rejected_before_it_is_decoded")
            + _of("test_job", "no_temp_folder_outlives_its_job")),
    Promise(30, "a path of the worker's disk", "URL_BLOCKED",
            _of("inputs/test_images", "local_path_and_other_scheme_are_blocked")
            + _of("test_job", "the_callback_hears_of_every_failure")),
    Promise(31, "a first and a last picture of different shapes",
            "the first sets the size; each is scaled to cover it and cropped",
            _of("inputs/test_references",
                "the_first_image_sets_the_size_and_the_last_is_cropped_to_it",
                "an_explicit_size_crops_both_pictures")),
    # Network
    Promise(32, "addresses that are not of the public internet", "URL_BLOCKED",
            _of("inputs/test_addresses", "special_address_is_not_public",
                "special_range_is_closed_to_both_edges_and_open_beyond")
            + _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field")),
    Promise(33, "clouds' metadata services", "URL_BLOCKED",
            _of("inputs/test_addresses", "metadata_service_is_not_public")
            + _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field")),
    Promise(34, "loopback in octal, hexadecimal, short, circled", "URL_BLOCKED",
            _of("inputs/test_addresses", "url_that_can_be_misread_is_refused")
            + _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field")),
    Promise(35, "IPv4 addresses inside IPv6 ones, by every transition mechanism", "URL_BLOCKED",
            _of("inputs/test_addresses", "special_address_is_not_public",
                "special_range_is_closed_to_both_edges_and_open_beyond")
            + _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field")),
    Promise(36, "a name with public and private addresses", "URL_BLOCKED",
            _of("inputs/test_net", "name_with_any_private_answer_is_refused")),
    Promise(37, "a name that changes its address between check and use",
            "the checked address is dialled; TLS and Host keep the name",
            _of("inputs/test_net", "checked_address_is_dialled_and_the_name_kept",
                "name_that_turns_private_between_tries_is_refused",
                "tls_keeps_the_name_while_the_address_is_dialled")
            + _of("inputs/test_url_policy",
                  "a_lora_whose_host_turns_private_after_the_check_is_not_fetched",
                  "a_store_whose_host_turns_private_after_the_check_gets_nothing_and_the_file_is_kept",
                  "a_callback_whose_host_turns_private_after_the_check_is_a_warning")),
    Promise(38, "redirects inside, from https to http, in circles",
            "URL_BLOCKED; each is checked like the first, five at most",
            _of("inputs/test_net", "redirect_to_private_address_is_refused",
                "redirect_from_https_to_http_is_refused", "redirect_loop_ends_after_five")
            + _of("inputs/test_addresses",
                  "redirect_that_can_be_misread_or_leaves_https_is_refused")),
    Promise(39, "URLs that two parsers read in two ways",
            "URL_BLOCKED; what was parsed is what is dialled",
            _of("inputs/test_addresses", "url_that_can_be_misread_is_refused",
                "no_other_parser_reads_another_host")),
    Promise(40, "ports of other services", "URL_BLOCKED unless the operator opens them",
            _of("inputs/test_addresses", "any_port_means_every_port_that_there_is",
                "any_port_loosens_nothing_else")),
    Promise(41, "a proxy in the environment", "URL_BLOCKED; it is never used",
            _of("inputs/test_net", "proxy_in_the_environment_is_refused_and_never_used")
            + _of("inputs/test_url_policy",
                  "a_proxy_in_the_environment_is_refused_in_every_field")),
    Promise(42, "false lengths, endless bodies, gzip bombs, chunks of negative size",
            "FETCH_FAILED at the limit, counted after unpacking",
            _of("inputs/test_net", "false_content_length_over_the_cap_is_refused_unread",
                "body_without_length_stops_at_the_cap",
                "gzip_bomb_stops_at_the_cap_without_filling_memory",
                "chunk_of_negative_size_does_not_read_without_end")
            + _of("delivery/test_caller_store",
                  "a_store_that_answers_without_end_does_not_fill_memory")),
    Promise(43, "a server that sends a byte at a time", "FETCH_FAILED at one deadline for it all",
            _of("inputs/test_net", "slow_drip_ends_at_the_deadline",
                "server_that_says_nothing_ends_at_the_deadline",
                "resolver_that_hangs_does_not_outlive_the_deadline")
            + _of("delivery/test_caller_store", "a_store_that_drips_is_left_at_the_deadline")),
    Promise(44, "refusals, outages, bad certificates",
            "FETCH_FAILED, permanent or after three tries; TLS is never given up",
            _of("inputs/test_net", "client_error_is_permanent_and_asked_once",
                "passing_error_is_retryable_and_asked_three_times",
                "certificate_of_another_name_is_a_permanent_failure",
                "certificate_that_nobody_vouches_for_is_a_permanent_failure")),
    Promise(45, "a redirect to another host", "no cookie, referrer or credential goes along",
            _of("inputs/test_net", "redirect_carries_nothing_from_host_to_host")
            + _of("integration/test_download",
                  "the_token_goes_to_the_hub_and_not_to_the_content_network")),
    Promise(46, "mapping a private network by asking", "inside and nowhere are answered alike",
            _of("inputs/test_net", "internal_and_missing_names_get_the_same_answer")
            + _of("inputs/test_url_policy",
                  "inside_and_nowhere_are_answered_alike_in_every_field")),
    # Models and GPU
    Promise(47, "weights that are half there", "MODEL_CORRUPT or not installed; the next run mends",
            _of("weights/test_store", "a_component_that_is_not_whole_does_not_count",
                "an_interrupted_write_is_swept_by_the_next")
            + _of("test_job", "weights_that_were_cut_short_are_corrupt_and_named")
            + _of("integration/test_download", "a_killed_download_is_completed_by_the_next")),
    Promise(48, "damaged weights", "MODEL_CORRUPT, named",
            _of("weights/test_store", "one_flipped_byte_is_found_and_named")
            + _of("pipelines/test_pool", "broken_weights_are_named_and_not_filled_with_noise")),
    Promise(49, "weights as pickles", "refused unopened",
            _of("integration/test_download", "a_repository_with_pickles_only_is_refused")
            + _of("weights/test_store", "an_index_may_only_name_safetensors_beside_it")
            + _of("integration/test_release",
                  "a_pickle_that_would_run_code_is_refused_even_with_the_right_hash")),
    Promise(50, "a LoRA as a pickle", "UNSUPPORTED, unopened",
            _of("weights/test_lora_files", "a_pickle_is_refused_unopened")),
    Promise(51, "a LoRA for another model", "UNSUPPORTED; nothing of it stays",
            _of("pipelines/test_lora", "a_lora_that_does_not_fit_is_refused_and_leaves_nothing",
                "a_misfit_is_refused_with_its_counts_and_the_next_job_succeeds")),
    Promise(52, "code or another version from a model's repository",
            "none is run; revisions are pinned",
            _of("integration/test_release", "the_catalogs_release_is_https_and_pinned",
                "a_file_that_is_not_the_pinned_one_is_never_opened")
            + _of("pipelines/test_remote_code", "no_loader_is_told_to_trust_remote_code",
                  "nothing_is_called_that_runs_what_a_repository_brings",
                  "code_that_comes_with_a_language_model_is_not_run",
                  "code_that_comes_with_a_part_of_a_model_is_not_run")),
    Promise(53, "two workers on one volume", "they take turns; a dead one's lock holds nobody up",
            _of("integration/test_download", "two_processes_on_one_volume_take_turns",
                "a_killed_download_is_completed_by_the_next")),
    Promise(54, "the hub refuses, is busy or away",
            "MODEL_UNAVAILABLE without the token; installed weights need no hub",
            _of("integration/test_download",
                "a_refused_repository_says_how_to_give_a_token_and_not_which",
                "a_busy_hub_is_waited_for_as_long_as_it_asks",
                "a_hub_that_can_not_be_reached_is_said_so",
                "offline_an_installed_store_is_enough")),
    Promise(55, "the GPU's memory is full", "one try with a lower plan, then OUT_OF_MEMORY",
            _of("test_job", "a_fault_has_its_code_and_the_next_job_succeeds",
                "a_failed_jobs_tensors_are_free_before_the_next")
            + _of("planning/test_out_of_memory",
                  "a_job_that_runs_out_of_memory_once_is_made_in_less_of_it",
                  "nothing_of_the_first_try_is_held_in_the_second",
                  "a_second_failure_says_what_would_take_less")),
    Promise(56, "a broken CUDA context or driver", "GPU_FAULT, and the worker restarts",
            _of("test_job", "a_fault_has_its_code_and_the_next_job_succeeds")
            + _of("machine/test_hardware", "a_machine_whose_driver_does_not_answer_is_a_cpu")),
    Promise(57, "NaN, black or plain frames", "GENERATION_FAILED; never delivered as a success",
            _of("pipelines/test_generate", "nan_in_the_latents_is_a_failure_and_not_a_video",
                "nan_from_the_model_is_a_failure")
            + _of("media/test_artifact", "a_video_of_one_colour_is_a_failed_generation",
                  "a_video_that_goes_black_is_a_failed_generation")),
    Promise(58, "a faster kernel that is not there",
            "the next one is used, at last torch's own; the reasons say so",
            _of("pipelines/test_attention", "a_kernel_that_is_not_there_is_left_for_the_next",
                "a_kernel_that_computes_wrong_is_not_used")
            + _of("pipelines/test_remote_code", "no_package_is_imported_that_may_be_missing")),
    Promise(59, "a fault while weights move", "the hooks go; the next job succeeds",
            _of("pipelines/test_pool", "a_job_that_fails_while_its_weights_move_leaves_no_trace")),
    Promise(60, "what a job leaves to the next", "nothing: same seed, same bytes",
            _of("test_job", "the_same_seed_gives_the_same_bytes_whatever_ran_before")
            + _of("pipelines/test_lora",
                  "the_same_seed_gives_the_same_bytes_before_and_after_lora_jobs")
            + _of("pipelines/test_every_model", "no_model_leaves_anything_to_the_next")),
    Promise(61, "the language model fails or babbles", "the user's prompt, with a warning",
            _of("prompts/test_enhance",
                "a_failure_of_the_language_model_costs_a_warning_and_not_the_job",
                "junk_is_not_used")),
    Promise(62, "a later segment of a long video fails",
            "the finished ones are kept; the error says which",
            _of("pipelines/test_long_video",
                "a_segment_that_fails_is_named_and_those_before_it_are_delivered")),
    # Encoding
    Promise(63, "no ffmpeg, or one without the codecs", "CONFIG_INVALID at start",
            _of("media/test_encode", "an_ffmpeg_that_will_not_do_is_noticed_at_start")
            + _of("test_doctor", "broken_schemas_and_a_missing_encoder_are_both_told")),
    Promise(64, "ffmpeg dies", "ENCODE_FAILED with its last words, less paths",
            _of("media/test_encode", "a_dying_ffmpeg_is_reported_with_its_words_but_no_path",
                "a_missing_ffmpeg_is_an_encode_failure")),
    Promise(65, "the disk is full", "DISK_FULL, before the first frame where that can be known",
            _of("media/test_encode", "a_full_disk_is_called_that",
                "too_little_room_is_noticed_before_the_first_frame")),
    Promise(66, "ffmpeg hangs", "killed at the deadline or the cancel, and gone",
            _of("media/test_encode", "a_hung_ffmpeg_is_killed_at_the_deadline",
                "cancel_ends_a_hung_ffmpeg", "a_killed_ffmpeg_leaves_neither_file_nor_process")),
    Promise(67, "frames of another shape or number", "ENCODE_FAILED",
            _of("media/test_encode", "frames_that_are_not_as_planned_are_refused")),
    Promise(68, "user text in a command or path", "there is none",
            _of("media/test_encode", "a_command_holds_numbers_and_our_own_path_and_nothing_else")
            + _of("test_job", "a_strange_job_id_never_becomes_a_path")),
    Promise(69, "a user's URL or file before ffmpeg", "it reads a pipe and nothing else",
            _of("media/test_encode", "a_command_holds_numbers_and_our_own_path_and_nothing_else")),
    Promise(70, "a file that is not what was asked for", "ENCODE_FAILED before it is delivered",
            _of("media/test_artifact", "a_video_that_is_not_as_asked_is_refused",
                "a_truncated_video_is_refused", "an_mp4_with_its_index_cut_off_is_refused",
                "a_text_file_is_not_a_video")),
    # Storage
    Promise(71, "names that climb out of their folder", "refused or hashed; keys are made here",
            _of("test_job", "a_strange_job_id_never_becomes_a_path")
            + _of("request/test_parse", "a_bucket_name_that_could_leave_its_place_is_refused")
            + _of("test_settings",
                  "a_bucket_variable_with_a_wrong_shape_is_refused_by_name")),
    Promise(72, "half a bucket's configuration", "CONFIG_INVALID at start",
            _of("test_settings", "a_bucket_with_one_variable_missing_is_refused_naming_it")
            + _of("integration/test_production",
                  "a_half_configured_bucket_stops_the_worker_at_start")),
    Promise(73, "a bucket that refuses", "STORAGE_FAILED, permanent; the file is kept",
            _of("integration/test_storage", "a_refusal_is_permanent_and_an_outage_is_not")
            + _of("integration/test_production",
                  "wrong_keys_are_a_storage_failure_that_names_no_key")
            + _of("delivery/test_deliver",
                  "all_files_that_a_bucket_refuses_are_kept_with_their_manifest")
            + _of("integration/test_faulty_storage",
                  "a_bucket_that_vanishes_before_the_manifest_is_permanent_and_the_file_is_kept")),
    Promise(74, "a bucket that is overloaded or breaks off",
            "the SDK's tries, then STORAGE_FAILED, retryable; the file is kept",
            _of("integration/test_storage", "a_refusal_is_permanent_and_an_outage_is_not")
            + _of("test_job", "a_file_its_bucket_refuses_is_kept")
            + _of("integration/test_faulty_storage",
                  "a_bucket_that_recovers_within_the_tries_costs_nothing",
                  "a_bucket_that_does_not_recover_is_worth_another_try_and_the_file_is_kept",
                  "a_bad_hour_does_not_use_up_the_tries_of_the_next")),
    Promise(75, "an upload in parts that fails", "the parts are removed; no half is to be seen",
            _of("integration/test_faulty_storage",
                "the_parts_of_an_upload_that_breaks_off_are_removed",
                "a_part_that_is_reset_is_sent_again",
                "a_cancel_amid_an_upload_in_parts_removes_the_parts")),
    Promise(76, "a store that refuses checksum headers",
            "none is sent unasked; size and our own sha256 are checked",
            _of("integration/test_production",
                "stored_objects_carry_their_hash_and_the_manifest_comes_with_them")
            + _of("integration/test_faulty_storage",
                  "a_store_that_refuses_checksum_headers_takes_files_whole_and_in_parts",
                  "the_store_that_refuses_checksums_would_refuse_the_sdks_own_way",
                  "a_file_that_the_bucket_cut_short_is_not_reported_and_does_not_stay")),
    Promise(77, "the same job again", "the same key",
            _of("integration/test_storage", "the_same_job_again_writes_the_same_key")),
    Promise(78, "presigned URLs", "short-lived, and in no log",
            _of("integration/test_production", "no_presigned_url_and_no_key_reaches_the_log")
            + _of("integration/test_secrets", "no_secret_is_in_a_log_or_an_answer")),
    Promise(79, "a store that the caller names",
            "https, and the rules of every URL, when it is used too",
            _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field",
                "what_carries_keys_or_weights_is_https_alone")
            + _of("delivery/test_caller_store",
                  "an_upload_goes_to_the_checked_address_and_is_signed_for_the_name",
                  "an_endpoint_that_has_become_private_is_not_dialled",
                  "a_bucket_name_before_the_host_leads_nowhere_private")),
    Promise(80, "a file that is too large for a response", "OUTPUT_TOO_LARGE, and what to do",
            _of("test_job", "an_inline_result_over_the_limit_says_what_to_do",
                "on_the_platform_without_a_bucket_the_variables_to_set_are_named")),
    Promise(81, "an answer that is not JSON", "INTERNAL, before the platform would drop it",
            _of("test_job", "a_result_that_is_not_json_is_caught")),
    # Callback
    Promise(82, "a callback inside, or that turns out to be when it is sent",
            "URL_BLOCKED before the work; at the end a warning",
            _of("inputs/test_url_policy", "a_url_that_leads_inside_is_refused_in_every_field",
                "a_callback_whose_host_turns_private_after_the_check_is_a_warning")
            + _of("delivery/test_callback", "target_that_has_become_private_is_not_dialled")),
    Promise(83, "a receiver that redirects", "a failure; it is not followed",
            _of("delivery/test_callback", "final_answer_stops_at_once")
            + _of("inputs/test_net", "post_never_follows_a_redirect")),
    Promise(84, "a receiver that is gone for good (410)", "no further try",
            _of("delivery/test_callback", "final_answer_stops_at_once")),
    Promise(85, "a receiver that asks to wait", "it is waited for, up to a limit",
            _of("delivery/test_callback", "retry_after_is_obeyed_up_to_a_cap")
            + _of("inputs/test_net", "retry_after_that_is_no_number_of_seconds_is_ignored")),
    Promise(86, "a notice that arrives twice", "both carry one `webhook-id`",
            _of("delivery/test_callback", "all_tries_carry_the_same_id_and_verify")),
    Promise(87, "keys that are being rotated", "a signature by each, as Standard Webhooks has it",
            _of("delivery/test_callback", "both_keys_verify_while_they_are_rotated",
                "signature_is_what_a_receiver_verifies")),
    Promise(88, "a receiver that is down",
            "a few tries within a budget, then a warning; the manifest has the result",
            _of("delivery/test_callback", "receiver_that_is_down_costs_no_more_than_the_budget",
                "passing_answer_is_tried_four_times", "no_exception_reaches_the_job")
            + _of("integration/test_production",
                  "a_callback_that_fails_is_a_warning_and_no_more")),
    Promise(89, "headers in a job id, an endless answer",
            "ids are hashed, the answer is not read",
            _of("delivery/test_callback", "no_job_id_can_write_itself_into_a_header")
            + _of("inputs/test_net", "post_does_not_wait_for_a_body")),
    Promise(90, "progress faster than it can be told",
            "throttled, numbered, in order, and none after the result",
            _of("timing/test_progress", "updates_are_throttled", "updates_arrive_in_order",
                "nothing_is_sent_after_close_has_returned")
            + _of("integration/test_production",
                  "progress_is_numbered_and_nothing_lands_after_the_result")),
    # Lifecycle
    Promise(91, "SIGTERM", "the running job finishes and is told; its temp folder goes",
            _of("integration/test_production", "sigterm_lets_the_running_job_finish")
            + _of("integration/test_lifecycle", "sigterm_lets_an_upload_finish")),
    Promise(92, "SIGKILL", "the next start sweeps; nothing half-made is to be seen",
            _of("weights/test_lora_files",
                "what_a_killed_worker_left_is_swept_and_a_live_download_is_not")
            + _of("integration/test_download", "a_killed_download_is_completed_by_the_next")
            + _of("test_scratch",
                  "what_a_killed_worker_left_is_removed_and_what_a_living_one_uses_stays")
            + _of("integration/test_production",
                  "what_a_killed_worker_left_is_gone_when_the_next_one_starts")
            + _of("integration/test_lifecycle",
                  "a_worker_killed_in_an_upload_leaves_nothing_to_see_and_its_successor_sweeps",
                  "a_worker_killed_in_an_upload_in_parts_leaves_nothing_to_see")),
    Promise(93, "a cancel at any stage, or two", "CANCELED within a step; the next job succeeds",
            _of("integration/test_production",
                "a_job_cancelled_while_denoising_posts_nothing_and_the_next_succeeds")
            + _of("integration/test_storage", "a_job_cancelled_at_the_upload_leaves_nothing")
            + _of("test_job", "a_job_waits_for_the_gpu_and_can_be_cancelled_there")
            + _of("pipelines/test_generate", "cancel_is_obeyed_within_one_step")
            + _of("media/test_encode", "cancel_ends_a_hung_ffmpeg")
            + _of("timing/test_stages", "a_job_ends_in_the_stage_in_which_it_was_stopped",
                  "a_job_after_many_that_were_stopped_is_as_if_they_had_not_been")
            + _of("integration/test_lifecycle",
                  "a_job_cancelled_behind_another_leaves_that_one_alone",
                  "a_job_cancelled_while_it_fetches_leaves_nothing",
                  "a_job_cancelled_while_it_computes_leaves_nothing",
                  "a_job_cancelled_while_it_uploads_leaves_nothing_and_holds_nobody_up")
            + _of("integration/test_faulty_storage",
                  "a_job_cancelled_amid_its_upload_leaves_nothing_and_stops_trying",
                  "a_store_that_fails_to_remove_a_cancelled_file_does_not_change_the_outcome")),
    Promise(94, "jobs side by side", "one has the GPU; each has its own temp folder",
            _of("test_job", "a_job_waits_for_the_gpu_and_can_be_cancelled_there",
                "two_jobs_at_once_take_turns_at_the_gpu_and_have_folders_of_their_own")
            + _of("integration/test_lifecycle",
                  "two_jobs_at_once_have_the_bytes_that_they_have_alone")),
    Promise(95, "a job's time is up", "DEADLINE, naming the stage",
            _of("test_job", "a_deadline_names_its_stage")
            + _of("timing/test_progress", "a_deadline_names_the_stage_it_fell_in")
            + _of("timing/test_stages", "a_job_ends_in_the_stage_in_which_it_was_stopped")
            + _of("integration/test_faulty_storage",
                  "a_job_that_is_late_amid_its_upload_says_so_and_saves_what_it_made")),
    Promise(96, "an exit inside a job", "INTERNAL; the worker lives",
            _of("test_job", "a_fault_has_its_code_and_the_next_job_succeeds")),
    Promise(97, "no GPU where there should be one", "the worker does not start",
            _of("test_doctor",
                "full_models_without_a_gpu_are_a_problem_where_it_is_paid_for",
                "the_fitness_check_raises_with_all_problems")
            + _of("integration/test_production",
                  "a_worker_that_is_not_fit_ends_before_its_first_job_and_says_why")),
    Promise(98, "secrets in logs and answers", "none, whatever goes wrong",
            _of("integration/test_secrets", "no_secret_is_in_a_log_or_an_answer")
            + _of("test_settings", "no_refusal_repeats_a_secret",
                  "settings_print_without_their_secrets")),
    Promise(99, "text that writes lines of its own into the log", "refused, escaped or hashed",
            _of("request/test_parse", "text_that_breaks_what_comes_after_is_refused",
                "a_field_name_that_is_no_plain_text_is_refused",
                "a_huge_field_name_does_not_come_back_in_the_error")
            + _of("test_logs", "a_record_is_one_line_whatever_it_quotes",
                  "no_line_of_a_traceback_can_be_taken_for_an_entry",
                  "a_library_that_says_too_much_is_cut",
                  "the_secrets_of_urls_that_a_library_quotes_are_left_out",
                  "a_librarys_own_handler_and_a_wrong_call_are_covered_too")),
    Promise(100, "a wrong environment", "CONFIG_INVALID at start, all of it at once",
            _of("test_settings", "all_problems_are_reported_at_once",
                "a_whole_number_is_ascii_digits_within_its_range")),
    Promise(101, "a disk that is full or can't be written", "DISK_FULL or STORAGE_FAILED",
            _of("test_job", "a_full_temp_folder_is_called_that",
                "an_output_folder_that_can_not_be_written_is_a_storage_failure")
            + _of("weights/test_lora_files", "a_full_disk_is_not_blamed_on_the_server",
                  "a_cache_that_can_not_be_written_is_named")),
    Promise(102, "a clock that jumps", "deadlines do not",
            _of("timing/test_progress",
                "the_clock_is_monotonic_so_that_setting_the_time_ends_no_job")),
)  # fmt: skip
