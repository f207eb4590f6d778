import com.example.acclimate.v1.InferenceServiceGrpc;
import com.example.acclimate.v1.PredictRequest;
import com.example.acclimate.v1.PredictStreamResponse;
import com.example.acclimate.v1.Prediction;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Asks a model about photographs, one answer each, as they come: {@code Predict shop a.jpg b.jpg}.
 *
 * <p>ACCLIMATE_SERVER says where the service listens, ACCLIMATE_TOKEN who asks (docs/security.md).
 */
public final class Predict {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final CountDownLatch done = new CountDownLatch(1);
  private final Queue<String> unanswered = new ArrayDeque<>();
  private volatile Throwable failure;

  public static void main(String[] words) throws Exception {
    if (words.length < 2) {
      throw new IllegalArgumentException("usage: Predict MODEL IMAGE...");
    }
    String target = System.getenv().getOrDefault("ACCLIMATE_SERVER", "127.0.0.1:50051");
    // With TLS: without usePlaintext; the system's roots are trusted then.
    ManagedChannel channel = ManagedChannelBuilder.forTarget(target).usePlaintext().build();
    try {
      new Predict().ask(channel, "models/" + words[0], List.of(words).subList(1, words.length));
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private void ask(ManagedChannel channel, String model, List<String> paths) throws Exception {
    Metadata headers = new Metadata();
    String token = System.getenv("ACCLIMATE_TOKEN");
    if (token != null) {
      headers.put(AUTHORIZATION, "Bearer " + token);
    }
    // Every call has a deadline; a stream that is to last longer is opened again.
    StreamObserver<PredictRequest> questions =
        InferenceServiceGrpc.newStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
            .withDeadlineAfter(5, TimeUnit.MINUTES)
            .predictStream(new Answers());
    unanswered.addAll(paths);
    for (String path : paths) {
      ByteString image = ByteString.copyFrom(Files.readAllBytes(Path.of(path)));
      questions.onNext(
          PredictRequest.newBuilder().setModel(model).addImages(image).setTopK(1).build());
    }
    questions.onCompleted();
    done.await();
    if (failure != null) {
      System.err.println(reason(failure) + ": " + failure.getMessage());
      System.exit(1);
    }
  }

  /** Answers come in the order of the images, on a thread of gRPC's. */
  private final class Answers implements StreamObserver<PredictStreamResponse> {
    @Override
    public void onNext(PredictStreamResponse answer) {
      String path = unanswered.remove();
      if (answer.hasRefusal()) { // it costs only this image
        String message = answer.getRefusal().getMessage();
        System.out.printf("%s %s %s%n", path, answer.getRefusal().getReason(), message);
        return;
      }
      Prediction.Class best = answer.getResponse().getPredictions(0).getClasses(0);
      String version = answer.getResponse().getVersion();
      System.out.printf("%s %s %.3f %s%n", path, best.getLabel(), best.getProbability(), version);
    }

    @Override
    public void onError(Throwable error) {
      failure = error;
      done.countDown();
    }

    @Override
    public void onCompleted() {
      done.countDown();
    }
  }

  /** The stable reason of a refusal. */
  private static String reason(Throwable error) throws Exception {
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    if (status != null) {
      for (Any detail : status.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          return detail.unpack(ErrorInfo.class).getReason();
        }
      }
    }
    return "ERROR";
  }
}
