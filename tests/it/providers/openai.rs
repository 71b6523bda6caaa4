//! Each line of the contract with an OpenAI-shaped service.

use std::time::Duration;

use gristmill::config::Secret;
use gristmill::domain::{BadVector, Embedding, Sparse};
use gristmill::providers::{Embedded, Embedder as _, OpenAi, OpenAiEndpoint, OpenAiModel, ProviderError, RateLimits};
use url::Url;

use crate::fake_openai::{Answer, FakeOpenAi, Options, Spoilt, tokens_of, vector_of, weights_of};

const DIMENSIONS: usize = 8;

fn start() -> FakeOpenAi {
    FakeOpenAi::start(Options { dimensions: DIMENSIONS, ..Options::default() })
}

fn client() -> reqwest::Client {
    // The first test to come installs it for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn driver(url: Url) -> OpenAi {
    let endpoint = OpenAiEndpoint { url, key: Some(Secret::new("sk-test-4711")) };
    let model =
        OpenAiModel { name: "embed-small".to_owned(), dimensions: DIMENSIONS, send_dimensions: false, sparse: false };
    OpenAi::new(client(), endpoint, model, Duration::from_secs(20))
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

fn embedding_of(text: &str, dimensions: usize) -> Embedding {
    vector_of(text, dimensions).into()
}

/// BGE-M3 at vLLM.
fn sparse_driver(url: Url) -> OpenAi {
    let endpoint = OpenAiEndpoint { url, key: Some(Secret::new("sk-test-4711")) };
    let model = OpenAiModel { name: "bge-m3".to_owned(), dimensions: DIMENSIONS, send_dimensions: false, sparse: true };
    OpenAi::new(client(), endpoint, model, Duration::from_secs(20))
}

/// The answer to two harmless texts.
async fn answered(answer: impl Into<Answer>) -> Result<Embedded, ProviderError> {
    let vendor = start();
    vendor.script([answer]);
    driver(vendor.url()).embed(&texts(["Ada was here.", "So was Grace."])).await
}

async fn refused(answer: impl Into<Answer>) -> ProviderError {
    answered(answer).await.unwrap_err()
}

fn no_answer(why: &str) -> ProviderError {
    ProviderError::NoAnswer(why.to_owned())
}

fn garbled(why: &str) -> ProviderError {
    ProviderError::Garbled(why.to_owned())
}

#[tokio::test]
async fn each_text_gets_its_vector_and_the_tokens_are_counted() {
    let vendor = start();
    let texts = texts(["Ada was here.", "So was Grace.", "今天"]);

    let embedded = driver(vendor.url()).embed(&texts).await.unwrap();

    let vectors = texts.iter().map(|text| Ok(embedding_of(text, DIMENSIONS))).collect();
    let tokens: usize = texts.iter().map(|text| tokens_of(text)).sum();
    let want = Embedded { vectors, input_tokens: Some(tokens as u64), ..Embedded::default() };
    assert_eq!(embedded, want);
    let seen = &vendor.seen()[0];
    assert_eq!((seen.model.as_str(), seen.dimensions), ("embed-small", None));
    assert_eq!(seen.encoding_format.as_deref(), Some("base64"));
    assert_eq!(seen.authorization.as_deref(), Some("Bearer sk-test-4711"));
}

#[tokio::test]
async fn floats_are_taken_from_services_that_know_nothing_else() {
    let vendor = FakeOpenAi::start(Options { dimensions: DIMENSIONS, only_floats: true, ..Options::default() });
    let embedded = driver(vendor.url()).embed(&texts(["Ada"])).await.unwrap();
    assert_eq!(embedded.vectors, [Ok(embedding_of("Ada", DIMENSIONS))]);
}

#[tokio::test]
async fn dimensions_are_asked_for_only_where_configured() {
    let vendor = start();
    let endpoint = OpenAiEndpoint { url: vendor.url(), key: None };
    let model = OpenAiModel { name: "embed-large".to_owned(), dimensions: 5, send_dimensions: true, sparse: false };
    let driver = OpenAi::new(client(), endpoint, model, Duration::from_secs(20));

    let embedded = driver.embed(&texts(["Ada"])).await.unwrap();

    assert_eq!(embedded.vectors, [Ok(embedding_of("Ada", 5))]);
    let seen = &vendor.seen()[0];
    assert_eq!((seen.dimensions, &seen.authorization), (Some(5), &None));
}

#[tokio::test]
async fn a_url_may_end_in_a_slash_and_no_text_is_no_request() {
    let vendor = start();
    let driver = driver(format!("{}/", vendor.url()).parse().unwrap());
    assert_eq!(driver.embed(&[]).await, Ok(Embedded::default()));
    assert_eq!(vendor.requests(), 0);
    driver.embed(&texts(["Ada"])).await.unwrap();
}

#[tokio::test]
async fn vectors_are_matched_by_their_number_not_their_order() {
    let embedded = answered(Answer::shuffled()).await.unwrap();
    assert_eq!(embedded.vectors, ["Ada was here.", "So was Grace."].map(|text| Ok(embedding_of(text, DIMENSIONS))));
}

#[tokio::test]
async fn the_requests_name_and_the_limits_are_passed_on() {
    let answer = Answer::good()
        .with("x-request-id", "req_0123456789")
        .with("x-ratelimit-limit-requests", "60")
        .with("x-ratelimit-limit-tokens", "150000")
        .with("x-ratelimit-remaining-requests", "59")
        .with("x-ratelimit-remaining-tokens", "149984")
        .with("x-ratelimit-reset-tokens", "6m0s");
    let embedded = answered(answer).await.unwrap();
    assert_eq!(embedded.request_id.as_deref(), Some("req_0123456789"));
    let limits = RateLimits {
        requests: Some(60),
        tokens: Some(150_000),
        remaining_requests: Some(59),
        remaining_tokens: Some(149_984),
        reset_requests: None,
        reset_tokens: Some(Duration::from_mins(6)),
    };
    assert_eq!(embedded.limits, Some(limits));
}

#[tokio::test]
async fn an_answer_whose_vectors_cannot_be_told_apart_is_none() {
    assert_eq!(refused(Answer::wrong_count()).await, garbled("1 vectors for 2 texts"));
    assert_eq!(refused(Answer::repeated_index()).await, garbled("two vectors for input 1 of 2"));
}

#[tokio::test]
async fn a_bad_vector_is_named_by_its_number_and_spoils_no_other() {
    for (answer, why) in [
        (Answer::wrong_dimensions(), "has 7 dimensions instead of 8"),
        (Answer::not_finite(), "has a value that is not finite"),
        (Answer::zeros(), "is all zeros"),
    ] {
        let embedded = answered(answer).await.unwrap();
        assert_eq!(embedded.vectors[0], Ok(embedding_of("Ada was here.", DIMENSIONS)));
        assert_eq!(embedded.all(), Err(garbled(&format!("the vector of input 2 of 2 {why}"))));
    }
}

#[tokio::test]
async fn a_body_that_is_no_answer_says_nothing_about_its_texts() {
    assert_eq!(refused(Answer::html()).await, no_answer("it sent a web page, not JSON; is the url right?"));
    assert_eq!(refused(Answer::empty()).await, no_answer("its body is empty"));
    assert_eq!(refused(Answer::body(r#"{"data": ["#)).await, no_answer("its JSON is cut off"));
    assert_eq!(
        refused(Answer::body(r#"{"data": 3}"#)).await,
        no_answer("it sent no list of embeddings in JSON (line 1, column 10)")
    );
}

#[tokio::test]
async fn an_answer_longer_than_any_honest_one_is_not_read_to_its_end() {
    let error = refused(Answer::body(&" ".repeat(200_000))).await;
    assert_eq!(error, garbled("the answer is longer than 66048 bytes"));
}

#[tokio::test]
async fn rate_limits_say_how_long_to_wait() {
    let wait = |after| ProviderError::RateLimited { after };
    assert_eq!(refused(429).await, wait(None));
    let seconds = Answer::status(429).with("retry-after", "7");
    assert_eq!(refused(seconds.clone()).await, wait(Some(Duration::from_secs(7))));
    assert_eq!(refused(seconds.with("retry-after-ms", "250")).await, wait(Some(Duration::from_millis(250))));
    let date = Answer::status(429).with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(refused(date).await, wait(Some(Duration::ZERO)));
    let reset = Answer::status(429).with("x-ratelimit-remaining-tokens", "0").with("x-ratelimit-reset-tokens", "1m2s");
    assert_eq!(refused(reset).await, wait(Some(Duration::from_secs(62))));
}

#[tokio::test]
async fn money_and_keys_are_the_credentials_matter() {
    for answer in [Answer::insufficient_quota(), Answer::status(401), Answer::status(403), Answer::status(402)] {
        let error = refused(answer).await;
        assert!(matches!(error, ProviderError::Credential(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_key_never_shows_in_an_error() {
    let options = Options { key: Some("another".to_owned()), ..Options::default() };
    let error = driver(FakeOpenAi::start(options).url()).embed(&texts(["Ada"])).await.unwrap_err();
    let want = "status 401, invalid_request_error, invalid_api_key: Incorrect API key provided: … …-…";
    assert_eq!(error, ProviderError::Credential(want.to_owned()));
}

#[tokio::test]
async fn a_wrong_model_address_or_redirect_is_a_misconfiguration() {
    let vendor = FakeOpenAi::start(Options { model: Some("another".to_owned()), ..Options::default() });
    let other_path = vendor.url().join("/v2").unwrap();
    for url in [vendor.url(), other_path] {
        let error = driver(url).embed(&texts(["Ada"])).await.unwrap_err();
        assert!(matches!(error, ProviderError::Misconfigured(_)), "{error:?}");
    }
    let error = refused(Answer::status(307).with("location", "http://127.0.0.1:9/")).await;
    assert_eq!(
        error,
        ProviderError::Misconfigured(
            "status 307, server_error: The server had an error processing your request.".to_owned()
        )
    );
}

#[tokio::test]
async fn a_key_that_no_header_can_carry_is_a_misconfiguration() {
    let vendor = start();
    let endpoint = OpenAiEndpoint { url: vendor.url(), key: Some(Secret::new("two\nlines")) };
    let model = OpenAiModel { name: "m".to_owned(), dimensions: 2, send_dimensions: false, sparse: false };
    let error =
        OpenAi::new(client(), endpoint, model, Duration::from_secs(20)).embed(&texts(["Ada"])).await.unwrap_err();
    assert_eq!(error, ProviderError::Misconfigured("its url or key cannot be sent over HTTP".to_owned()));
}

#[tokio::test]
async fn what_is_too_large_can_be_halved() {
    assert_eq!(refused(413).await, ProviderError::TooLarge);
    let vendor = FakeOpenAi::start(Options { most_inputs: 2, most_tokens: 30, longest: 20, ..Options::default() });
    let driver = driver(vendor.url());
    let long = "word ".repeat(18);
    for texts in [texts(["a", "b", "c"]), vec![long.clone(), long.clone()], vec![long.repeat(2)]] {
        assert_eq!(driver.embed(&texts).await, Err(ProviderError::TooLarge), "{texts:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_why_but_quotes_no_text() {
    let vendor = start();
    vendor.poison("POISON");
    let driver = driver(vendor.url());
    driver.embed(&texts(["harmless"])).await.unwrap();

    let error = driver.embed(&texts(["harmless", "Ada's POISON of 1815"])).await.unwrap_err();

    let want = "status 400, invalid_request_error: Rejected by our policy: …. The text was: …";
    assert_eq!(error, ProviderError::Refused(want.to_owned()));
    for status in [400, 422] {
        assert!(matches!(refused(status).await, ProviderError::Refused(_)));
    }
    let empty = driver.embed(&texts([""])).await.unwrap_err();
    assert!(matches!(empty, ProviderError::Refused(_)), "{empty:?}");
}

#[tokio::test]
async fn an_outage_is_not_the_texts_fault() {
    for status in [408, 409, 500, 502, 503, 504, 529] {
        let error = refused(status).await;
        assert!(matches!(error, ProviderError::Unavailable(_)), "{error:?}");
    }
    let broken_off = refused(Answer::cut_off()).await;
    assert!(broken_off.to_string().contains("the answer broke off"), "{broken_off}");
    let hung_up = refused(Answer::hang_up()).await;
    assert!(hung_up.to_string().contains("the connection failed"), "{hung_up}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable() {
    let url = start().url();
    let error = driver(url).embed(&texts(["Ada"])).await.unwrap_err();
    assert!(error.to_string().starts_with("the provider is not available: cannot connect: "), "{error}");
}

#[tokio::test]
async fn a_service_that_does_not_answer_in_time_may_have_been_paid() {
    let vendor = start();
    let _gate = vendor.hold();
    let endpoint = OpenAiEndpoint { url: vendor.url(), key: None };
    let model = OpenAiModel { name: "m".to_owned(), dimensions: 2, send_dimensions: false, sparse: false };
    let driver = OpenAi::new(client(), endpoint, model, Duration::from_millis(50));
    let error = driver.embed(&texts(["Ada"])).await.unwrap_err();
    assert!(error.to_string().starts_with("the provider gave no answer: no answer in time"), "{error}");
}

#[tokio::test]
async fn the_fake_holds_counts_and_remembers() {
    let vendor = start();
    let driver = driver(vendor.url());
    let gate = vendor.hold();
    let (ada, grace) = (texts(["Ada"]), texts(["Grace"]));
    let both = async { tokio::join!(driver.embed(&ada), driver.embed(&grace)) };
    let open = async {
        vendor.arrived(2).await;
        assert_eq!((vendor.requests(), vendor.paid("Ada")), (2, 0));
        gate.open();
    };

    let ((first, second), ()) = tokio::join!(both, open);

    vendor.answered(2).await;
    assert!(first.is_ok() && second.is_ok());
    assert_eq!((vendor.most_in_flight(), vendor.paid("Ada"), vendor.paid("Grace")), (2, 1, 1));
    vendor.always(Answer::status(500));
    driver.embed(&ada).await.unwrap_err();
    vendor.always(None);
    driver.embed(&ada).await.unwrap();
    assert_eq!(vendor.paid("Ada"), 2);
}

#[tokio::test]
async fn vectors_and_weights_of_tokens_come_in_one_request() {
    let vendor = start();
    let texts = texts(["Ada was here, was she?", "So was Grace."]);

    let embedded = sparse_driver(vendor.url()).embed(&texts).await.unwrap();

    let both = |text: &String| {
        let sparse = Sparse::new(weights_of(text)).unwrap();
        Ok(Embedding { vector: vector_of(text, DIMENSIONS), sparse: Some(sparse) })
    };
    let tokens: usize = texts.iter().map(|text| tokens_of(text)).sum();
    let vectors = texts.iter().map(both).collect();
    assert_eq!(embedded, Embedded { vectors, input_tokens: Some(tokens as u64), ..Embedded::default() });
    let [seen] = &vendor.seen()[..] else { panic!("one request is enough") };
    assert_eq!((seen.path, seen.model.as_str(), &seen.texts), ("/pooling", "bge-m3", &texts));
    assert_eq!(seen.authorization.as_deref(), Some("Bearer sk-test-4711"));
    // vLLM's address, whether or not it is given with OpenAI's part.
    for url in ["http://ADDRESS", "http://ADDRESS/v1/"] {
        let url = url.replace("ADDRESS", vendor.url().authority());
        sparse_driver(url.parse().unwrap()).embed(&texts).await.unwrap();
    }
}

#[tokio::test]
async fn bad_weights_of_tokens_spoil_no_other_text() {
    let vendor = start();
    vendor.script([Answer::vectors(Spoilt::OneWeight), Answer::shuffled()]);
    let texts = texts(["Ada was here.", "So was Grace."]);
    let driver = sparse_driver(vendor.url());

    let embedded = driver.embed(&texts).await.unwrap();

    assert_eq!((embedded.vectors[0].is_ok(), &embedded.vectors[1]), (true, &Err(BadVector::Weight)));
    let why = "the vector of input 2 of 2 has a weight of a token that is not a positive number";
    assert_eq!(embedded.all(), Err(garbled(why)));
    let shuffled = driver.embed(&texts).await.unwrap();
    assert_eq!(shuffled.vectors[1].as_ref().unwrap().sparse, Some(Sparse::new(weights_of("So was Grace.")).unwrap()));
}

#[tokio::test]
async fn a_server_without_the_plugin_is_misconfigured() {
    for answer in [Answer::refused("No IOProcessor plugin installed."), Answer::status(404), Answer::status(501)] {
        let vendor = start();
        vendor.script([answer]);
        let error = sparse_driver(vendor.url()).embed(&texts(["Ada"])).await.unwrap_err();
        assert!(matches!(error, ProviderError::Misconfigured(_)), "{error:?}");
    }
}
