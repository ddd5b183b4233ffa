//! New configurations, and new processes.

use super::*;

#[tokio::test]
async fn a_reporter_that_is_gone_stops_and_goes_on_from_there() {
    let (client, sent) = client(&[]);
    let started = Started::new(client, two()).await;
    let mut ids = started.end_some(3).await;
    started.flush().await;
    let only_b = json!({"reporters": [{"name": "b", "webhook": {"url": "http://b/"}}]});
    started.apply(config(only_b)).await;
    ids.extend(started.end_some(3).await);
    // Nobody waits for one that is gone.
    started.flush().await;
    assert_eq!(sent_to(&sent, "b"), ids);
    assert_eq!(sent_to(&sent, "a"), ids[..3]);
    started.apply(config(two())).await;
    started.flush().await;
    assert_eq!(sent_to(&sent, "a"), ids);
    assert_eq!(sent_to(&sent, "b"), ids, "none twice");
}

#[tokio::test]
async fn one_that_is_new_has_what_comes_from_then_on() {
    let (client, sent) = client(&[]);
    let only_b = json!({"reporters": [{"name": "b", "webhook": {"url": "http://b/"}}]});
    let started = Started::new(client, only_b).await;
    started.end_some(3).await;
    started.reporters.flush(LONG).await;
    started.apply(config(two())).await;
    let ids = started.end_some(2).await;
    started.flush().await;
    assert_eq!(sent_to(&sent, "a"), ids);
}

#[tokio::test]
async fn records_of_requests_that_run_on_are_kept_when_reports_are_switched_off() {
    let (client, sent) = client(&[500]);
    let started = Started::new(client, json!({})).await;
    let running = started.admit().await.unwrap();
    let mut ids = started.end_some(1).await;
    eventually("it is tried", || !sent.lock().unwrap().is_empty()).await;
    started.apply(UsageConfig::default()).await;
    assert!(started.admit().await.unwrap().take_sinks().is_empty());
    ids.push(end(&running));
    let begun = Instant::now();
    assert_eq!(started.reporters.flush(LONG).await, 0);
    assert!(begun.elapsed() < LONG / 2, "nobody waits for what nobody sends");
    started.apply(config(json!({}))).await;
    started.flush().await;
    assert_eq!(sent_to(&sent, "receiver")[1..], ids);
}

#[tokio::test]
async fn what_waits_is_sent_as_the_newest_configuration_says() {
    let (client, sent) = client(&[500, 500]);
    let started = Started::new(client, json!({})).await;
    let running = started.admit().await.unwrap();
    started.end_some(1).await;
    eventually("it is tried", || !sent.lock().unwrap().is_empty()).await;
    let webhook = json!({"url": "http://receiver/usage", "headers": {"authorization": "Bearer new"}});
    started.apply(config(json!({"reporters": [{"name": "billing", "webhook": webhook}]}))).await;
    end(&running);
    started.flush().await;
    let sent = sent.lock().unwrap();
    let told: Vec<_> = sent.iter().map(|request| request.headers()["authorization"].to_str().unwrap()).collect();
    assert_eq!(told, ["Bearer t", "Bearer new", "Bearer new", "Bearer new"]);
}

#[tokio::test]
async fn places_that_are_taken_stay_so_when_there_are_fewer() {
    let (client, _) = client(&[]);
    let few = json!({"queue_size": 1, "admit_timeout": "50ms"});
    let started = Started::new(client, json!({"queue_size": 2, "admit_timeout": "50ms"})).await;
    let (one, two) = (started.admit().await.unwrap(), started.admit().await.unwrap());
    started.apply(config(few)).await;
    end(&one);
    eventually("it is written", || started.reporters.pending() == 0).await;
    assert!(started.admit().await.is_err(), "the other has the only place");
    end(&two);
    started.apply(config(json!({"queue_size": 1, "admit_timeout": "10s"}))).await;
    started.admit().await.unwrap();
}

#[tokio::test]
async fn a_new_process_goes_on_where_the_last_one_ended() {
    let (first, sent) = client(&[200, 200, 1]);
    let started = Started::new(first, json!({})).await;
    let ids = started.end_some(5).await;
    eventually("the third hangs", || sent.lock().unwrap().len() == 3).await;
    let late = started.admit().await.unwrap();
    let (second, sent) = client(&[]);
    let started = started.restart(second, json!({})).await;
    started.flush().await;
    assert_eq!(sent_to(&sent, "receiver"), ids[2..]);
    // What ends after its reporters were closed is in the log, and in nobody's way.
    end(&late);
    started.flush().await;
}

#[tokio::test]
async fn a_ledger_that_can_not_be_opened_changes_nothing() {
    let (client, sent) = client(&[]);
    let started = Started::new(client.clone(), json!({})).await;
    let other = Reporters::new(client);
    let mut same = config(json!({}));
    same.ledger.path = started.folder.ledger();
    let error = other.open(&same).await.unwrap_err();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error}");
    other.apply(&same);
    assert!(admit(&other, "{}").await.unwrap().take_sinks().is_empty());
    assert!(started.folder.0.exists());
    started.end_some(1).await;
    started.flush().await;
    assert_eq!(sent.lock().unwrap().len(), 1);
}
